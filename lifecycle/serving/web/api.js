// The server's API as the page uses it: the models, an answer as it arrives, and the rest of one that ended early.
// Every failure is an `ApiError` whose message says what happened and what to do.

const UNREACHABLE = "The server cannot be reached. Check that `lifecycle serve` is still running and that this device "
  + "is connected to it, then try again.";
const LOCKED = "This server asks for an API key: enter it in the settings, then try again.";
const BROKEN_OFF = "The connection to the server was lost before the answer ended.";
const OTHER = "What answers at this address is not this server: a proxy or a login page may be in between.";
export const ALTERNATIVES = 5;  // tokens shown beside each one; text completions offer no more

/** A failed request; `code` is the server's (`context_length_exceeded`, ...), `status` HTTP's, 0 without an answer,
 * `wait` the seconds after which the server may be asked again. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

/** The served models' cards. */
export async function models(key) {
  return (await asked("v1/models", key)).data;
}

/** An answer to messages. Yields { text, reasoning, tokens, end, usage, version } as they come, each with what is new;
 * at an abort, `AbortError`. */
export function answer({ model, messages, hasLogprobs, ...sampling }, key, signal) {
  const logprobs = hasLogprobs ? { logprobs: true, top_logprobs: ALTERNATIVES } : {};
  return streamed("v1/chat/completions", { model, messages, ...logprobs, ...sampling }, key, signal);
}

/** The same for the rest of an answer whose beginning is there: the model goes on after the beginning's tokens, whose
 * `count` the first part has. */
export async function* rest({ model, messages, begun, hasLogprobs, max_tokens = null, ...sampling }, key, signal) {
  const prompt = await tokenized({ model, messages }, key, signal);
  const own = await tokenized({ model, prompt: begun, add_special_tokens: false }, key, signal);
  yield { text: "", reasoning: "", tokens: [], count: own.length };
  const logprobs = hasLogprobs ? { logprobs: ALTERNATIVES } : {};
  const body = { model, prompt: [...prompt, ...own], max_tokens, ...logprobs, ...sampling };
  yield* streamed("v1/completions", body, key, signal);
}

async function tokenized(body, key, signal) {
  return (await asked("tokenize", key, { method: "POST", body: JSON.stringify(body), signal })).tokens;
}

async function* streamed(path, body, key, signal) {
  const text = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  const response = await ask(path, key, { method: "POST", body: text, signal });
  const bytes = new TextDecoder();  // a character may be spread over tokens
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message, { status: response.status, code: event.error.code });
    const choice = event.choices[0], delta = choice?.delta ?? {};
    yield {
      text: choice?.text ?? delta.content ?? "", reasoning: delta.reasoning_content ?? "",
      tokens: tokens(choice?.logprobs, bytes), end: choice?.finish_reason, usage: event.usage,
      version: event.system_fingerprint,
    };
  }
}

/** [{ text, logprob, others: [[text, logprob], ...] }, ...] from either of OpenAI's two forms. */
function tokens(logprobs, decoder) {
  if (logprobs?.content) {
    return logprobs.content.map(({ bytes, logprob, top_logprobs }) => ({
      text: decoder.decode(new Uint8Array(bytes), { stream: true }) || hexadecimal(bytes), logprob,
      others: top_logprobs.map((other) => [decoded(other.bytes), other.logprob]),
    }));
  }
  return (logprobs?.tokens ?? []).map((text, i) => (
    { text, logprob: logprobs.token_logprobs[i], others: Object.entries(logprobs.top_logprobs[i] ?? {}) }
  ));
}

function decoded(bytes) {
  const text = new TextDecoder().decode(new Uint8Array(bytes));
  return text.includes("\ufffd") ? hexadecimal(bytes) : text;
}

const hexadecimal = (bytes) => bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");

async function asked(path, key, options) {
  const response = await ask(path, key, options);
  return parsed(await reached(response.text(), UNREACHABLE));
}

async function ask(path, key, options = {}) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));  // headers have bytes; `fetch` takes no others
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${bytes}` } : {}) };
  const response = await reached(fetch(path, { headers, ...options }), UNREACHABLE);
  if (!response.ok) throw await failure(response);
  return response;
}

/** The value of JSON; a proxy in between may have sent something else. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(OTHER);
  }
}

/** The promise's value; browsers reject with a TypeError when a connection fails. */
async function reached(promise, message) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new ApiError(message) : error;
  }
}

async function failure(response) {
  const { status } = response;
  if (status === 401) return new ApiError(LOCKED, { status });
  const wait = Number(response.headers.get("Retry-After")) || 0;  // a date, which this server never sends, is no wait
  const text = await reached(response.text(), UNREACHABLE);
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(`The server rejected the request: ${message}`, { status, code, wait });
  } catch {  // not this server, but a proxy before it
    const said = `The server answered with HTTP status ${status} and no reason. Try again later.`;
    return new ApiError(said, { status, wait });
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reached(reader.read(), BROKEN_OFF);
    if (done) throw new ApiError(BROKEN_OFF);
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;  // a comment, which keeps the connection open
      const data = part.slice("data: ".length);
      if (data === "[DONE]") return;
      yield parsed(data);
    }
  }
}
