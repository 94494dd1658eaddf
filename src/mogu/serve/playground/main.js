// The page: what is set, what is asked, and the turns so far.

import { settings, STRICT, WEAKENING } from "./api.js";
import { the } from "./dom.js";
import { Turn } from "./turn.js";

const KEY = "mogu-key";
const WEAKEST = -4; // of the dial, where clients may weaken
const LINE = `Only MoGU answers here: ${STRICT}.`;

let about = null;
let key = kept() ?? "";
let turns = [];
let running = null;
let following = false;

function kept() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage is blocked: the key lasts as long as the page
  }
}

function keep(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch { /* as above */ }
}

function notice(line, wrong = false) {
  const place = the("notice");
  place.textContent = line;
  place.className = wrong ? "error" : "soft";
  place.hidden = !line;
}

function wantKey(line) {
  notice(line, true);
  the("access").hidden = false;
  the("key").select();
  the("key").focus();
}

/** Learn about the server; whether that went well. */
async function learn() {
  try {
    about = await settings(key);
  } catch (error) {
    about = null;
    if (error.status === 401) wantKey(error.message);
    else notice(error.message ?? String(error), true);
    return false;
  }
  the("access").hidden = true;
  const count = about.layers.length, routed = count > 0;
  the("about").textContent = routed
    ? `${about.model} · ${count} routed ${count === 1 ? "layer" : "layers"} · ${handover()}`
    : `${about.model} · no adapter: nothing is routed`;
  the("dialing").hidden = !routed;
  the("dial").min = about.allow_overrides ? WEAKEST : 0;
  if (about.max_tokens) the("most").max = about.max_tokens;
  compare(routed && about.allow_overrides);
  notice(routed && !about.allow_overrides ? LINE : "");
  return true;
}

function handover() {
  if (about.handover === "all") return "all tokens routed";
  const tokens = `${about.routed_tokens} routed ${about.routed_tokens === 1 ? "token" : "tokens"}`;
  return tokens + (about.handover === "risk" ? " at least, more while the risk is high" : ", then the plain base");
}

function compare(may) {
  the("comparing").hidden = !may;
  if (!may) the("compare").checked = false;
}

function number(id, fallback) {
  const field = the(id), value = field.valueAsNumber;
  if (Number.isNaN(value)) return fallback;
  return Math.min(Math.max(value, Number(field.min)), field.max ? Number(field.max) : Infinity);
}

/** The bodies to send for `question`. */
function requests(question) {
  const system = the("system").value.trim(), dial = number("dial", 0), routed = about.layers.length > 0;
  const body = (side, mogu) => ({
    model: about.model,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...turns.flatMap((turn) => turn.said(side)),
      { role: "user", content: question },
    ],
    temperature: number("temperature", 0),
    max_tokens: Math.round(number("most", 200)),
    stream: true,
    ...(mogu ? { mogu } : {}),
  });
  const made = { mogu: body("mogu", routed ? { trace: true, ...(dial ? { dial } : {}) } : null) };
  if (the("compare").checked) made.base = body("base", { routed_tokens: 0 });
  return made;
}

async function send() {
  const question = the("text").value.trim();
  if (!question || running) return;
  const mine = running = new AbortController();
  state();
  if (about || await learn()) await answer(question, mine);
  if (running === mine) running = null;
  state();
}

async function answer(question, mine) {
  const turn = new Turn(question, requests(question), about, key);
  the("welcome").hidden = true;
  the("clear").hidden = false;
  for (const earlier of turns) if (earlier.routing) earlier.routing.open = false;
  the("turns").append(turn.element);
  the("text").value = "";
  turn.map?.draw();
  following = true;
  turn.element.scrollIntoView({ block: "start" });
  await turn.ask(mine.signal, follow);
  if (running === mine) finish(turn);
  else turn.map?.drop(); // a new chat was begun meanwhile
}

function finish(turn) {
  turns.push(turn);
  const { mogu, base } = turn.answers;
  if (base?.failure?.code === WEAKENING) {
    turn.alone();
    compare(false);
    about.allow_overrides = false;
    the("dial").min = 0;
    dialed();
    notice(LINE);
  }
  if (mogu.failure?.status === 401) {
    about = null;
    wantKey(mogu.failure.message);
  }
  if (!mogu.text && mogu.failure && !the("text").value) the("text").value = turn.question;
}

/** Keep the end of what is written in sight, until the reader scrolls. */
function follow(words) {
  if (!following) return;
  const hidden = words.getBoundingClientRect().bottom - the("ask").getBoundingClientRect().top + 12;
  if (hidden > 0) scrollBy(0, hidden);
}

function state() {
  the("send").hidden = Boolean(running);
  the("stop").hidden = !running;
}

function stop() {
  running?.abort();
  the("text").focus();
}

function clear() {
  running?.abort();
  running = null;
  for (const turn of turns) turn.map?.drop();
  turns = [];
  for (const element of document.querySelectorAll(".turn")) element.remove();
  the("welcome").hidden = false;
  the("clear").hidden = true;
  state();
  the("text").focus();
}

function dialed() {
  const value = the("dial").valueAsNumber;
  const told = value > 0 ? `+${value}, safer` : value < 0 ? `−${-value}, less safe` : "0, as served";
  the("dialed").textContent = told;
}

the("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
the("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stop();
});
the("stop").addEventListener("click", stop);
the("clear").addEventListener("click", clear);
the("dial").addEventListener("input", dialed);
for (const example of the("welcome").querySelectorAll("button"))
  example.addEventListener("click", () => {
    the("text").value = example.textContent;
    the("text").focus();
  });
the("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  keep(the("key").value.trim());
  if (await learn()) the("text").focus();
});
for (const kind of ["wheel", "touchmove"]) addEventListener(kind, () => { following = false; }, { passive: true });

dialed();
if (await learn() && matchMedia("(hover: hover)").matches) the("text").focus();
