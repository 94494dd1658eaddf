// The server, as far as this page asks it: one request, its events, and what goes wrong in one line.

const WAY = "v1/chat/completions";
export const WEAKENING = "override_not_allowed";
export const STRICT = "this server lets no client weaken its protection (it runs without --allow-client-overrides)";

/** A request that was not answered, or not to its end; the message is one line for people. */
export class Failure extends Error {
  constructor(line, { status = 0, code = null } = {}) {
    super(line);
    this.status = status;
    this.code = code;
  }
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(`The server at ${location.host} does not answer; is it still running?`);
  }
}

async function refusal(response, key) {
  const { status } = response;
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch { /* not ours: a proxy's page */ }
  const more = { status, code: told.code };
  if (status === 401)
    return new Failure(key ? "The server does not know this API key." : "The server wants an API key.", more);
  if (status === 403 && told.code === WEAKENING) return new Failure(`Not answered: ${STRICT}.`, more);
  if (status === 429) {
    const seconds = response.headers.get("retry-after");
    return new Failure(`The server is busy; try again ${seconds ? `in ${seconds} s` : "later"}.`, more);
  }
  if (status === 503) return new Failure("The server is shutting down and takes no more requests.", more);
  return new Failure(`${told.message ?? "The server gave no answer"} (status ${status})`, more);
}

/** What the page must know of the server. */
export async function settings(key) {
  const response = await reach("playground/settings", { headers: headers(key) });
  if (!response.ok) throw await refusal(response, key);
  return response.json();
}

/** The events of an answer as they come, the end mark excepted. */
export async function* chat(body, key, signal) {
  const response = await reach(WAY, { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
  if (!response.ok) throw await refusal(response, key);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Failure(`The answer broke off: ${event.error.message}`, event.error);
    yield event;
  }
  throw new Failure("The answer broke off: the connection was closed before its end.");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The answer broke off: the connection to the server was lost.");
    }
    if (part.done) return;
    const blocks = (rest + part.value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

/** The request for a shell; a key is named, never written. */
export function curl(body, withKey) {
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const key = withKey ? ' \\\n  -H "Authorization: Bearer $MOGU_API_KEY"' : "";
  const url = new URL(WAY, document.baseURI);
  return `curl -sN ${url} \\\n  -H "Content-Type: application/json"${key} \\\n  -d ${quoted}`;
}
