// One turn of the conversation: the question, an answer or two, and what the routers made of it.

import { chat, curl, Failure } from "./api.js";
import { make, percent } from "./dom.js";
import { HeatMap } from "./map.js";

/** One answer in the making; `request` is the body that is sent for it. */
class Answer {
  constructor(name, request, about, key, map) {
    Object.assign(this, { name, request, about, key, map });
    this.text = "";
    this.failure = null;
    this.badge = make("span", { className: "badge", hidden: true });
    this.words = make("p", { className: "words" });
    this.words.setAttribute("aria-live", "polite");
    this.foot = make("p", { className: "soft foot" });
    this.element = make("section", { className: "answer" },
      make("h2", {}, name, this.badge), this.words, this.foot, this.#curl());
    this.element.setAttribute("aria-label", name);
  }

  /** Ask, and write down what comes; never throws what the server or the network did. */
  async ask(signal, grown) {
    this.#busy(true);
    try {
      for await (const event of chat(this.request, this.key, signal)) {
        this.#take(event);
        grown(this.words);
      }
      if (!this.text) this.words.append(make("span", { className: "soft" }, "(an empty answer)"));
    } catch (error) {
      this.failure = error;
      if (error.name === "AbortError") this.foot.textContent = "Stopped.";
      else if (error instanceof Failure) this.#fail(error.message);
      else {
        this.#fail("The answer could not be read; the console of the browser tells more.");
        console.error(error);
      }
    } finally {
      this.#busy(false);
    }
  }

  #busy(busy) {
    this.element.classList.toggle("busy", busy);
    this.words.setAttribute("aria-busy", String(busy));
  }

  #fail(line) {
    const told = make("p", { className: "error" }, line);
    told.setAttribute("role", "alert");
    this.foot.before(told);
  }

  #take(event) {
    const choice = event.choices[0], report = event.mogu;
    if (!choice) return;
    if (choice.finish_reason) return this.#end(choice.finish_reason, report);
    if (choice.delta.role) return this.#begin(report);
    const tokens = report?.trace?.answer ?? [];
    if (choice.delta.content) this.#write(choice.delta.content, tokens.some((token) => token.routed));
    if (tokens.some((token) => token.unwill)) this.map?.add(tokens);
  }

  #begin(report) {
    if (report?.risk != null) {
      const flagged = report.risk > this.about.risk_threshold;
      this.badge.textContent = `risk ${percent(report.risk)}, ${flagged ? "flagged" : "not flagged"}`;
      this.badge.title = `Calibrated risk of the prompt; flagged above ${percent(this.about.risk_threshold)}`;
      this.badge.classList.toggle("flagged", flagged);
      this.badge.hidden = false;
    }
    if (report?.trace?.prompt) this.map?.prompt(report.trace.prompt);
    this.weights = report?.unwill == null ? "" : ` · mean u ${report.unwill.toFixed(2)}, g ${report.glad.toFixed(2)}`;
  }

  #write(text, routed) {
    this.text += text;
    const last = this.words.lastChild;
    if (last && last.classList.contains("routed") === routed) last.append(text);
    else this.words.append(make("span", { className: routed ? "routed" : "plainly" }, text));
  }

  #end(finish, report) {
    const routed = report?.routed_tokens ?? 0, told = [];
    if (this.map) told.push(`${routed} routed ${routed === 1 ? "token" : "tokens"} (marked)${this.weights}`);
    if (finish === "length") told.push("cut at the token limit");
    this.foot.textContent = told.join(" · ");
  }

  #curl() {
    const text = curl(this.request, Boolean(this.key));
    const code = make("pre", { tabIndex: 0 }, text);
    const copy = make("button", { type: "button", className: "plain" }, "Copy");
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
      } catch { // pages that came over plain HTTP from afar may not write there
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected: now press Ctrl+C";
      }
    });
    return make("details", { className: "curl" }, make("summary", {}, "This request as curl"), code, copy);
  }
}

/** The whole turn; `requests` hold a body for `mogu` and, to compare, one for `base`. */
export class Turn {
  constructor(question, requests, about, key) {
    this.question = question;
    this.answers = {};
    const routed = about.layers.length > 0;
    if (routed) this.map = new HeatMap(about.layers);
    this.answers.mogu = new Answer(routed ? "MoGU" : about.model, requests.mogu, about, key, this.map);
    if (requests.base) this.answers.base = new Answer("Base, not protected", requests.base, about, key);
    this.grid = make("div", { className: "answers" }, ...this.#all.map((answer) => answer.element));
    this.element = make("article", { className: "turn" }, make("p", { className: "question" }, question), this.grid);
    this.element.setAttribute("aria-label", "Turn");
    if (!this.map) return;
    this.routing = make("details", { className: "routing", open: true },
      make("summary", {}, "What the routers said, layer by token"),
      make("p", { className: "soft" },
        "Lowest layer below. Columns are the tokens of the prompt (the template's too), then, behind the line, the " +
        "routed tokens of the answer with the weights that chose them; the plain base writes the rest."),
      this.map.element);
    this.element.append(this.routing);
  }

  get #all() {
    return Object.values(this.answers);
  }

  /** Ask for all answers at once. */
  async ask(signal, grown) {
    await Promise.all(this.#all.map((answer) => answer.ask(signal, grown)));
    if (this.map && !this.map.tokens.length) this.routing.hidden = true;
  }

  /** Take the base's answer away: it was refused. */
  alone() {
    this.answers.base?.element.remove();
    delete this.answers.base;
  }

  /** What a side's later requests hold of this turn; a side that said nothing takes MoGU's answer. */
  said(side) {
    const text = this.answers[side]?.text || this.answers.mogu.text;
    return text ? [{ role: "user", content: this.question }, { role: "assistant", content: text }] : [];
  }
}
