// The server's own interface, asked as any client of OpenAI's asks it.

const KEY = "jaxfusion-api-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function request(path, { headers = {}, ...options } = {}) {
  const key = sessionStorage.getItem(KEY);
  const all = key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers: all });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null); // what stands in front of the server has its own errors
  throw new ApiError(response.status, body?.error?.message ?? `The server answers with ${response.status}.`);
}

// The name of the model that is served.
export async function modelName() {
  const { data } = await (await request("v1/models")).json();
  return data[0].id;
}

// An answer to `messages` as it grows: {text, tokens, end, usage}, each but for `text` only where there is news of it.
// `signal` breaks it off. Throws ApiError.
export async function* answer(messages, signal) {
  // The log-probabilities are how a client learns, before the end, how many tokens there are.
  const body = JSON.stringify({ messages, stream: true, stream_options: { include_usage: true }, logprobs: true });
  const headers = { "Content-Type": "application/json" };
  const response = await request("v1/chat/completions", { method: "POST", headers, body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw new ApiError(500, error.message);
    const [choice] = choices;
    const tokens = choice?.logprobs?.content.length ?? 0;
    yield { text: choice?.delta.content ?? "", tokens, end: choice?.finish_reason, usage };
  }
  throw new ApiError(0, "The connection was lost before the answer had ended.");
}

// The data of server-sent events, which are a line each. (Not every browser iterates over a stream itself.)
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) yield event.slice("data: ".length);
  }
}
