// From the files that people choose to the data URLs that the server takes.

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // what the server reads
const MOST_BYTES = 2 ** 21; // several go in one request, and again with each further question
const MOST_PIXELS = 2 ** 24;
const SIDE = 2048; // of a picture that is drawn anew; models look at fewer pixels

// A file that the server reads, and that is no larger than a request should be, goes as it is, byte for byte.
// Throws Error with what to tell for what is no picture.
export async function read(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "That"} is no picture that this browser can read.`);
  }
  const { width, height } = bitmap;
  const fits = KINDS.includes(file.type) && file.size <= MOST_BYTES && width * height <= MOST_PIXELS;
  const url = await dataURL(fits ? file : await drawn(bitmap));
  bitmap.close();
  return url;
}

async function drawn(bitmap) {
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind what is transparent, as the server has it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

function dataURL(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The picture cannot be read any more; choose it again."));
    reader.readAsDataURL(blob);
  });
}
