// Layer by token, as a drawing that can be pointed at and walked through with the arrow keys.

import { make } from "./dom.js";

const HIGH = 14, AXIS = 28;
const WIDEST = 18, NARROWEST = 6;
const CANVAS = 16000; // browsers draw no wider canvas
const KINDS = [["unwill", "u, unwilling responder"], ["glad", "g, glad responder"]];
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const drawn = new Set();
const again = () => drawn.forEach((map) => map.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
addEventListener("resize", again);

function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  return [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16));
}

function mix(low, full, share) {
  return `rgb(${low.map((value, i) => Math.round(value + (full[i] - value) * share)).join(",")})`;
}

function shown(token) {
  return JSON.stringify(token).slice(1, -1);
}

/** The weights behind one answer; `tokens` grow while it is written. */
export class HeatMap {
  constructor(layers) {
    this.layers = layers;
    this.tokens = [];
    this.start = 0;
    this.at = null;
    this.readout = make("output", { className: "readout" }, "Point at a cell, or focus a map and use the arrow keys.");
    this.maps = KINDS.map(([kind, name]) => this.#map(kind, name));
    this.element = make("div", { className: "maps" }, this.readout, ...this.maps.map((map) => map.figure));
    drawn.add(this);
  }

  /** Forget it: it leaves the page. */
  drop() {
    drawn.delete(this);
  }

  /** What the routers said at the prompt's tokens, from the first. */
  prompt(tokens) {
    this.start = tokens.length;
    this.add(tokens);
  }

  /** Further tokens; those of the plain base have no weights and no column. */
  add(tokens) {
    this.tokens.push(...tokens.filter((token) => token.unwill));
    this.draw();
  }

  get #wide() {
    const room = (this.maps[0].figure.clientWidth || 500) - AXIS;
    const fit = Math.floor(room / Math.max(1, this.tokens.length));
    return Math.max(NARROWEST, Math.min(WIDEST, fit));
  }

  #map(kind, name) {
    const canvas = make("canvas", { tabIndex: 0, className: kind });
    canvas.setAttribute("role", "img");
    const marks = this.layers.map((layer) => make("li", {}, String(layer)));
    const axis = make("ol", { className: "axis" }, ...marks.reverse());
    axis.setAttribute("aria-hidden", "true");
    const scale = make("span", { className: "soft scale" }, "0 ", make("i", { className: kind }), " 1");
    const figure = make("figure", {},
      make("figcaption", {}, name, scale),
      make("div", { className: "map" }, axis, make("div", { className: "scroll" }, canvas)));
    canvas.addEventListener("pointermove", (event) => this.#point(canvas, event));
    canvas.addEventListener("pointerdown", (event) => this.#point(canvas, event));
    canvas.addEventListener("keydown", (event) => this.#walk(canvas, event));
    canvas.addEventListener("focus", () => {
      if (!this.at && this.tokens.length) this.#show(Math.max(0, this.start - 1), 0);
    });
    return { kind, name, canvas, figure };
  }

  #point(canvas, event) {
    if (!this.tokens.length) return;
    const box = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / HIGH);
    this.#show(Math.floor((event.clientX - box.left) / this.drawnWide), this.layers.length - 1 - row);
  }

  #walk(canvas, event) {
    const jump = { Home: -this.tokens.length, End: this.tokens.length }[event.key];
    const move = jump === undefined ? MOVES[event.key] : [jump, 0];
    if (!move || !this.tokens.length) return;
    event.preventDefault();
    this.#show((this.at?.token ?? this.start - 1) + move[0], (this.at?.layer ?? 0) + move[1]);
    const left = this.at.token * this.drawnWide, box = canvas.parentElement;
    if (left < box.scrollLeft || left + this.drawnWide > box.scrollLeft + box.clientWidth)
      box.scrollLeft = left - box.clientWidth / 2;
  }

  #show(token, layer) {
    token = Math.max(0, Math.min(this.tokens.length - 1, token));
    layer = Math.max(0, Math.min(this.layers.length - 1, layer));
    this.at = { token, layer };
    const it = this.tokens[token], written = token - this.start;
    const where = written < 0 ? `prompt, token ${token + 1}` : `answer, token ${written + 1}`;
    const risk = it.risk == null ? "" : ` · risk ${(100 * it.risk).toFixed(1)}%`;
    this.readout.textContent = `${where} “${shown(it.token)}” · layer ${this.layers[layer]} · ` +
      `u ${it.unwill[layer].toFixed(3)} · g ${it.glad[layer].toFixed(3)}${risk}`;
    this.draw();
  }

  /** Anew, in the colours of now. */
  draw() {
    const wide = this.drawnWide = this.#wide, count = this.layers.length;
    const width = wide * this.tokens.length, height = HIGH * count;
    const sharp = Math.min(devicePixelRatio || 1, CANVAS / Math.max(1, width));
    const low = colour("--low"), line = mix(colour("--text"), colour("--text"), 0);
    for (const { kind, name, canvas } of this.maps) {
      canvas.width = Math.round(width * sharp);
      canvas.height = Math.round(height * sharp);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.setAttribute("aria-label", `${name}: ${count} layers by ${this.tokens.length} tokens. Arrow keys move.`);
      const pen = canvas.getContext("2d"), full = colour(`--${kind}`);
      pen.scale(sharp, sharp);
      this.tokens.forEach((token, x) => token[kind].forEach((value, layer) => {
        pen.fillStyle = mix(low, full, value);
        pen.fillRect(x * wide, (count - 1 - layer) * HIGH, wide - 1, HIGH - 1);
      }));
      pen.fillStyle = pen.strokeStyle = line;
      if (this.start && this.start < this.tokens.length) pen.fillRect(this.start * wide - 1.25, 0, 1.5, height);
      if (this.at) {
        pen.lineWidth = 2;
        pen.strokeRect(this.at.token * wide, (count - 1 - this.at.layer) * HIGH, wide - 1, HIGH - 1);
      }
    }
  }
}
