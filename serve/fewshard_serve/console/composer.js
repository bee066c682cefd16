// The input to classify: a typed text, or an image that is dropped, pasted or chosen.

import { $, fill, h } from "./dom.js";
import { bytes } from "./format.js";
import { TASKS } from "./tasks.js";

const TYPING_PAUSE_MS = 350;

// Calls `onsend({ task, given }, models)` when the user submits, `onclear()` when there is no input.
export class Composer {
  #image = null;
  #off = new Set();
  #typing = 0;
  #offered = "";
  #given = {
    text: () => $("text").value.trim() ? $("text").value : null,
    image: () => this.#image,
  };
  #example = {
    text: (text) => h("button", { type: "button", class: "example", title: text, onclick: () => { $("text").value = text; this.send(); } }, text),
    image: (image) => h("button", { type: "button", class: "example picture", onclick: () => this.take(image) },
      h("img", { src: URL.createObjectURL(image), alt: "example image" })),
  };

  constructor(models, { onsend, onclear }) {
    Object.assign(this, { models, onsend, onclear });
    $("composer").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    $("text").addEventListener("keydown", (event) => this.#key(event));
    $("text").addEventListener("input", () => this.#typed());
    $("file").addEventListener("change", (event) => this.take(event.target.files[0]));
    for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => this.#switch(radio.value));
    this.#listenForFiles();
  }

  get task() {
    return document.querySelector("input[name=mode]:checked").value;
  }

  // Chooses the first task that has a model.
  start() {
    const task = Object.keys(TASKS).find((each) => this.models.ready(each).length);
    if (task && task !== this.task) this.#choose(task);
  }

  // Shows the models and examples of the chosen task.
  offer() {
    const fitting = this.models.ready(this.task);
    const offered = JSON.stringify([this.task, fitting.map(({ name, config }) => [name, Boolean(config)])]);
    if (offered === this.#offered) return;
    this.#offered = offered;
    $("send").disabled = fitting.length === 0;
    $("hint").textContent = fitting.length === 0 ? TASKS[this.task].none : TASKS[this.task].hint;
    $("chosen").hidden = fitting.length < 2;
    fill($("chosen"), h("legend", { class: "sr" }, "Models to ask"), fitting.map((model) => this.#chip(model)));
    this.#showExamples(examples(fitting, this.task));
  }

  send() {
    if ($("send").disabled) return;
    const models = this.models.ready(this.task).filter(({ name }) => !this.#off.has(name));
    const given = this.#given[this.task]();
    if (!models.length) return this.#complain("Choose at least one model.");
    return given === null ? this.#complain(TASKS[this.task].nothing) : this.onsend({ task: this.task, given }, models);
  }

  // Takes an image from any source, and checks the server's size limit before it is sent.
  take(file) {
    if (!file) return;
    if (this.task !== "image") this.#choose("image");
    const limit = this.models.ready("image")[0]?.config?.limits?.max_body_bytes ?? Infinity;
    if (!file.type.startsWith("image/")) return this.#refuse(`“${file.name}” is not an image.`);
    if (file.size > limit) return this.#refuse(`The image has ${bytes(file.size)}; this server takes at most ${bytes(limit)}.`);
    this.#image = file;
    this.#preview(file);
    this.send();
  }

  #preview(file) {
    const preview = $("preview");
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.alt = file.name ? `The image ${file.name}` : "The chosen image";
    preview.hidden = false;
    fill($("drop-text"), h("strong", {}, file.name || "Image"), ` ${bytes(file.size)}, click to choose another`);
  }

  #refuse(message) {
    this.#image = null;
    $("preview").hidden = true;
    this.onclear();
    this.#complain(message);
  }

  #complain(message) {
    fill($("summary"), h("span", { class: "wrong" }, message));
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      clearTimeout(this.#typing);
      this.send();
    }
  }

  #typed() {
    clearTimeout(this.#typing);
    if (!$("as-i-type").checked) return;
    this.#typing = setTimeout(() => $("text").value.trim() ? this.send() : this.onclear(), TYPING_PAUSE_MS);
  }

  #choose(task) {
    document.querySelector(`input[name=mode][value=${task}]`).checked = true;
    this.#switch(task);
  }

  #switch(task) {
    for (const [each, { parts }] of Object.entries(TASKS)) for (const part of parts) $(part).hidden = each !== task;
    this.onclear();
    this.offer();
  }

  #chip({ name }) {
    const box = h("input", { type: "checkbox", checked: !this.#off.has(name), onchange: () => {
      if (box.checked) this.#off.delete(name);
      else this.#off.add(name);
    } });
    return h("label", { class: "chip-box" }, box, h("span", { title: name }, name));
  }

  #showExamples(found) {
    $("examples").hidden = found.length === 0;
    fill($("examples"), h("span", { class: "soft" }, "Try"), found.map(this.#example[this.task]));
  }

  #listenForFiles() {
    const zone = $("dropzone");
    const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragover", (event) => { if (carriesFiles(event)) { event.preventDefault(); zone.classList.add("over"); } });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over"); });
    addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      zone.classList.remove("over");
      this.take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
      if (file) { event.preventDefault(); this.take(file); }
    });
  }
}

// Example inputs from the models' cards. For some, the answers are known and checked when a model is loaded.
function examples(models, task) {
  return TASKS[task].examples(models.map(({ config }) => config?.card?.examples).find(Array.isArray) ?? []);
}
