// The server's API as the page uses it: the models, and an answer as it arrives. Every failure is an `ApiError` whose
// message says what happened and what to do.

const UNREACHABLE = "The server cannot be reached. Check that `lifecycle serve` is still running and that this device "
  + "is connected to it, then try again.";
const LOCKED = "This server asks for an API key: enter it above, then try again.";
const BROKEN_OFF = "The connection to the server was lost before the answer ended.";

/** A failed request; `code` is the server's (`context_length_exceeded`, ...), `status` HTTP's, 0 without an answer. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The served models' cards. */
export async function models(key) {
  const response = await ask("v1/models", key);
  return parsed(await reached(response.text(), UNREACHABLE)).data;
}

/** Yields { text, reason, usage, version } as they come, each with what is new; at an abort, `AbortError`. */
export async function* answer(body, key, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask("v1/chat/completions", key, { method: "POST", body: JSON.stringify(streamed), signal });
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message, { status: response.status, code: event.error.code });
    const choice = event.choices[0];
    yield {
      text: choice?.delta.content ?? "", reason: choice?.finish_reason, usage: event.usage,
      version: event.system_fingerprint,
    };
  }
}

async function ask(path, key, options = {}) {
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await reached(fetch(path, { headers, ...options }), UNREACHABLE);
  if (!response.ok) throw await failure(response);
  return response;
}

/** The value of JSON; a proxy in between may have sent something else. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError("What answers at this address is not this server: a proxy or a login page may be in between.");
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
  const text = await reached(response.text(), UNREACHABLE);
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(`The server rejected the request: ${message}`, { status, code });
  } catch {  // not this server, but a proxy before it
    return new ApiError(`The server answered with HTTP status ${status} and no reason. Try again later.`, { status });
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
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield parsed(data);
    }
  }
}
