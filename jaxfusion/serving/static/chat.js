// The conversation: what has been said, the question that is being written, and the answer that grows.

import { answer, keepKey, modelName } from "./api.js";
import { read } from "./pictures.js";
import { element, follow, picture, showAnswer, showQuestion } from "./view.js";

const $ = (id) => document.getElementById(id);
const log = $("log"), words = $("words"), hint = $("hint"), gate = $("gate");
const touch = matchMedia("(pointer: coarse)");

let said = []; // messages, as the server takes them
let draft = blank();
let growing = null; // breaks off the answer that is under way

// The question that is being written: data URLs of its pictures, how many files are still to be read, and whether it has
// been sent off, and goes as soon as they are.
function blank() {
  return { pictures: [], unread: 0, due: false };
}

function draw() {
  const { pictures, unread, due } = draft;
  const shown = pictures.map((url, place) => {
    const remove = element("button", "remove", "×");
    remove.type = "button";
    remove.ariaLabel = `Remove picture ${place + 1}`;
    remove.onclick = () => {
      draft.pictures = pictures.filter((_, other) => other !== place);
      draw();
    };
    return element("li", "", picture(url, place), remove);
  });
  $("pictures").replaceChildren(...shown);
  $("pictures").hidden = !shown.length;
  $("send").disabled = due || !(words.value.trim() || pictures.length || unread);
  $("send").hidden = growing !== null;
  $("stop").hidden = growing === null;
}

function tell(trouble) {
  follow(log, () => {
    $("trouble").textContent = trouble;
    $("trouble").hidden = !trouble;
  });
}

async function add(files) {
  const mine = draft;
  tell("");
  mine.unread += files.length;
  draw();
  for (const file of files) {
    let url, trouble;
    try {
      url = await read(file);
    } catch (error) {
      trouble = error;
    }
    if (draft !== mine) return; // the conversation has begun anew
    mine.unread -= 1;
    if (trouble) {
      mine.due = false; // whether it is to go without the picture is for its writer to say
      tell(trouble.message);
    } else {
      mine.pictures = [...mine.pictures, url];
    }
    draw();
  }
  if (mine.due && !mine.unread) ask();
}

function message(text, urls) {
  const seen = urls.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: text ? [...seen, { type: "text", text }] : seen };
}

async function ask() {
  const text = words.value.trim(), urls = draft.pictures;
  if (growing || !(text || urls.length || draft.unread)) return;
  draft.due = draft.unread > 0;
  if (draft.due) return draw();
  const asked = [...said, message(text, urls)], mine = new AbortController();
  [words.value, draft, growing] = ["", blank(), mine];
  tell("");
  draw();
  hint.hidden = true;
  const question = showQuestion(log, text, urls), reply = showAnswer(log);
  let trouble = null;
  try {
    for await (const piece of answer(asked, mine.signal)) reply.add(piece);
  } catch (error) {
    trouble = error;
  }
  if (growing !== mine) return; // the conversation has begun anew
  growing = null;
  const stopped = mine.signal.aborted;
  if (trouble && !reply.text) { // as if it had not been asked
    question.remove();
    reply.article.remove();
    hint.hidden = said.length > 0;
    words.value = [text, words.value].filter(Boolean).join("\n");
    draft.pictures = [...urls, ...draft.pictures];
  } else {
    said = [...asked, { role: "assistant", content: reply.text }];
    reply.end(...(stopped ? ["stopped"] : trouble ? ["broken off"] : []));
  }
  draw();
  if (trouble && !stopped) {
    tell(trouble.message);
    if (trouble.status === 401) enter();
  }
}

function anew() {
  growing?.abort();
  [said, growing, words.value, draft] = [[], null, "", blank()];
  log.replaceChildren(hint);
  hint.hidden = false;
  tell("");
  draw();
  words.focus();
}

// Learns the model's name, by a key where the server asks for one.
async function enter(given = false) {
  try {
    const name = await modelName();
    $("model").textContent = name;
    document.title = `${name} · JaxFusion`;
    gate.close();
    tell("");
    words.focus();
  } catch (error) {
    if (error.status !== 401 && !gate.open) return tell(error.message);
    $("refusal").textContent = error.status === 401 ? "The server knows no such key." : error.message;
    $("refusal").hidden = !given;
    if (!gate.open) gate.showModal();
    $("key").select();
  }
}

gate.addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  enter(true);
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
words.addEventListener("input", draw);
words.addEventListener("keydown", (event) => {
  // Enter also chooses among the characters that an input method offers, and phones have no Shift+Enter.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  ask();
});
$("stop").addEventListener("click", () => growing?.abort());
$("anew").addEventListener("click", anew);

$("add").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", async ({ target }) => {
  const files = [...target.files];
  target.value = ""; // so that the same one can be chosen again
  await add(files);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  add(files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault(); // a browser would show the file in the page's place
  document.body.classList.remove("over");
  add([...event.dataTransfer.files]);
});

enter();
