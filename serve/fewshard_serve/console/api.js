// Calls to the server, with the token, the errors, and the state of the connection. Paths are relative to the
// page, since a proxy may have mounted the server below a prefix.

const KEY = "fewshard-token";

// An error response of the server. `retryAfter`: in seconds, 0 if the server gave no time.
export class ApiError extends Error {
  constructor(status, message, code, retryAfter) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

// The server did not answer.
export class Gone extends Error {}

// Whether an error is an answer, a missing answer or a cancelled call, rather than a bug in this page.
export const isAnswer = (error) => error instanceof ApiError || error instanceof Gone || error.name === "AbortError";

let askForToken = async () => false;
let asking = null;
let hasDeclined = false;
let note = () => {};

// `ask(isWrong)` asks for a token and resolves to true if one was entered. `onConnection(isUp)` is called
// after each call.
export function connect(ask, onConnection) {
  askForToken = ask;
  note = onConnection;
}

export const token = {
  get: () => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; } },
  set: (value) => { try { sessionStorage.setItem(KEY, value); } catch { /* asked again next time */ } },
  forget: () => { try { sessionStorage.removeItem(KEY); } catch { /* there is none */ } },
};

export async function getJson(path, options = {}) {
  const response = await call(path, { headers: { accept: "application/json" }, ...options });
  return response.json();
}

export async function getText(path, options = {}) {
  return (await call(path, options)).text();
}

export async function call(path, options = {}) {
  for (;;) {
    const used = token.get();
    const response = await send(path, options, used);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.status !== 401 || !(await tokenGiven(used))) throw error;
  }
}

async function send(path, options, used) {
  const headers = { ...options.headers, ...(used ? { authorization: `Bearer ${used}` } : {}) };
  try {
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    note(!isProxySpeaking(response));
    return response;
  } catch (error) {
    if (options.signal?.aborted) throw error;
    note(false);
    throw new Gone("The server does not answer.");
  }
}

// If the server has ended, the proxy answers in its place, and not in JSON.
function isProxySpeaking(response) {
  return response.status >= 502 && !(response.headers.get("content-type") ?? "").includes("json");
}

async function errorOf(response) {
  if (isProxySpeaking(response)) return new Gone("The server does not answer.");
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  try {
    const body = await response.json();
    return new ApiError(response.status, String(body.error), String(body.code), retryAfter);
  } catch {
    return new ApiError(response.status, `The server answered ${response.status}.`, "", retryAfter);
  }
}

// Allow the question for a token to be asked again.
export function askAgain() {
  hasDeclined = false;
}

// Several calls may be refused at the same time. They share one question.
async function tokenGiven(used) {
  if (token.get() !== used) return true;
  if (hasDeclined) return false;
  asking ??= askForToken(used !== "").finally(() => { asking = null; });
  hasDeclined = !(await asking);
  return !hasDeclined;
}

export const modelPath = (name, action) => `v2/models/${encodeURIComponent(name)}/${action}`;
