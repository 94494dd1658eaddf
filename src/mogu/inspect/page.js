"use strict";
const numbers = JSON.parse(document.getElementById("numbers").textContent);
const { tokens, layers, start, handed } = numbers;
const readout = document.getElementById("readout");
const spans = new Map([...document.querySelectorAll("[data-token]")].map((span) => [Number(span.dataset.token), span]));
const high = 12;
const wide = Math.max(6, Math.min(18, Math.floor(940 / tokens.length)));
const maps = ["unwill", "glad"].map((key) => ({ key, canvas: document.getElementById(key) }));
let at = null;

function shade(low, full, share) {
  const mix = (a, b) => Math.round(a + (b - a) * share);
  return `rgb(${low.map((value, i) => mix(value, full[i])).join(",")})`;
}

function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  return [0, 2, 4].map((i) => parseInt(text.slice(i, i + 2), 16));
}

function draw() {
  const low = colour("--low"), line = shade(colour("--line"), colour("--line"), 0);
  for (const { key, canvas } of maps) {
    const sharp = window.devicePixelRatio || 1;
    const width = wide * tokens.length, height = high * layers.length;
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d"), full = colour(`--${key}`);
    pen.scale(sharp, sharp);
    numbers[key].forEach((row, i) => row.forEach((value, token) => {
      pen.fillStyle = shade(low, full, value);
      pen.fillRect(token * wide, (layers.length - 1 - i) * high, wide - 0.5, high - 0.5);
    }));
    pen.fillStyle = line;
    for (const edge of new Set([start, handed])) pen.fillRect(edge * wide - 1, 0, 1.5, height);
    if (at) {
      pen.strokeStyle = line;
      pen.lineWidth = 1.5;
      pen.strokeRect(at.token * wide + 0.5, (layers.length - 1 - at.layer) * high + 0.5, wide - 1.5, high - 1.5);
    }
  }
}

function show(token, layer) {
  token = Math.max(0, Math.min(tokens.length - 1, token));
  layer = Math.max(0, Math.min(layers.length - 1, layer));
  if (at) spans.get(at.token)?.classList.remove("now");
  at = { token, layer };
  spans.get(token)?.classList.add("now");
  const where = token < start ? "prompt" : token < handed ? "answer, routed" : "answer, plain base";
  const [u, g] = maps.map(({ key }) => numbers[key][layer][token].toFixed(3));
  readout.textContent = `token ${token} ${JSON.stringify(tokens[token])} (${where}) · layer ${layers[layer]} · ` +
    `u ${u} · g ${g} · risk ${(100 * numbers.risk[token]).toFixed(1)}%`;
  draw();
}

const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
for (const { canvas } of maps) {
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / high);
    show(Math.floor((event.clientX - box.left) / wide), layers.length - 1 - row);
  });
  canvas.addEventListener("keydown", (event) => {
    const jump = { Home: -tokens.length, End: tokens.length }[event.key];
    const move = jump === undefined ? moves[event.key] : [jump, 0];
    if (!move) return;
    event.preventDefault();
    show((at?.token ?? start - 1) + move[0], (at?.layer ?? 0) + move[1]);
    const box = canvas.parentElement, left = at.token * wide;
    if (left < box.scrollLeft || left + wide > box.scrollLeft + box.clientWidth) box.scrollLeft = left - box.clientWidth / 2;
  });
}
for (const [token, span] of spans) span.addEventListener("mouseenter", () => show(token, at?.layer ?? layers.length - 1));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
window.addEventListener("resize", draw);
draw();
