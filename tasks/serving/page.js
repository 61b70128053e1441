"use strict";

// The page asks the server that it came from, and nobody else. Whatever comes back is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const answer = $("answer");
let models = {};
let running = null; // a text that is being written, which can be stopped
let asking = new AbortController(); // of all requests of the model that is chosen

// Answers that are still to come are not waited for, and cannot come in the place of later ones.
function forget() {
  asking.abort();
  asking = new AbortController();
}

// ------------------------------------------------------------------------------------------------------------ the server

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { signal: asking.signal, ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) $("login").hidden = false;
  const found = await response.json().catch(() => null);
  throw new Error(found?.error?.message ?? `the server says ${response.status}`);
}

const asJson = (value) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
const path = (what) => `v1/models/${encodeURIComponent($("model").value)}/${what}`;

const posted = async (where, inputs) => (await (await ask(where, asJson({ inputs }))).json()).outputs;
const predict = (...inputs) => posted(path("predict"), inputs);
const explain = (...inputs) => posted(path("explain"), inputs);

function complain(error) {
  if (error?.name === "AbortError") return;
  $("error").textContent = error instanceof TypeError ? "the server cannot be reached" : String(error?.message ?? error);
  $("error").hidden = false;
}

// Runs what a form asks for; while it does, its buttons are off.
async function busy(form, work) {
  const buttons = [...form.querySelectorAll("button:not([type=button])")];
  $("error").hidden = true;
  buttons.forEach((one) => { one.disabled = true; });
  answer.setAttribute("aria-busy", "true");
  try { await work(); } catch (error) { complain(error); } finally {
    buttons.forEach((one) => { one.disabled = false; });
    answer.removeAttribute("aria-busy");
  }
}

// --------------------------------------------------------------------------------------------------------------- showing

function element(name, text = "", attributes = {}) {
  const found = document.createElement(name);
  found.textContent = text;
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
}

const percent = (score) => `${(100 * score).toFixed(1)} %`;

function bars(scores) {
  const table = element("table");
  for (const [name, score] of Object.entries(scores)) {
    const row = table.insertRow();
    row.insertCell().textContent = name;
    row.insertCell().append(element("meter", "", { min: 0, max: 1, value: score, "aria-label": name }));
    row.insertCell().textContent = percent(score);
  }
  return table;
}

// The server counts characters, JavaScript units of UTF-16.
function marked(text, spans) {
  const letters = [...text];
  const found = element("pre");
  let end = 0;
  for (const span of spans) {
    found.append(letters.slice(end, span.start).join(""));
    const mark = element("mark", letters.slice(span.start, span.end).join(""));
    if (span.label) mark.append(element("small", span.label));
    found.append(mark);
    end = span.end;
  }
  found.append(letters.slice(end).join(""));
  return found;
}

// A row for each piece that was written, a column for each that was read; the darker, the more it looks there.
function attended({ source, target, attention }) {
  const table = element("table", "", { class: "attention", "aria-labelledby": "looks" });
  const head = table.createTHead().insertRow();
  head.append(element("td"), ...source.map((piece) => element("th", piece, { scope: "col" })));
  const body = table.createTBody();
  target.forEach((piece, n) => {
    const row = body.insertRow();
    row.append(element("th", piece, { scope: "row" }));
    attention[n].forEach((weight, m) => {
      const cell = row.insertCell();
      cell.title = `${piece} looks at ${source[m]}: ${percent(weight)}`;
      cell.append(element("span", percent(weight), { class: "unseen" }));
      cell.style.setProperty("--weight", weight);
    });
  });
  const wide = element("div", "", { class: "wide", tabindex: 0, role: "group", "aria-labelledby": "looks" });
  wide.append(table);
  return [element("p", "What each piece of the translation (rows) looks at in the line (columns)", { id: "looks", class: "hint" }), wide];
}

// --------------------------------------------------------------------------------------------------------------- drawing

const pad = $("pad");
const ink = pad.getContext("2d", { willReadFrequently: true });
let pen = { x: 140, y: 140, down: false };
let drawn = false;

function wipe() {
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, pad.width, pad.height);
  drawn = false;
  pen = { x: 140, y: 140, down: false };
  tellPen();
}

function stroke(x, y) {
  ink.strokeStyle = "#fff";
  ink.lineWidth = 24;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(pen.x, pen.y);
  ink.lineTo(x, y);
  ink.stroke();
  drawn = true;
}

function tellPen() {
  $("pen").textContent = document.activeElement === pad ? `pen ${pen.down ? "down" : "up"} at ${Math.round(pen.x / 2.8)}, ${Math.round(pen.y / 2.8)}` : "";
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * pad.width) / box.width, y: ((event.clientY - box.top) * pad.height) / box.height };
}

let dragging = false;
pad.addEventListener("pointerdown", (event) => {
  pad.setPointerCapture(event.pointerId);
  dragging = true;
  pen = { ...place(event), down: false };
  stroke(pen.x, pen.y);
});
pad.addEventListener("pointermove", (event) => {
  if (!dragging) return;
  const { x, y } = place(event);
  stroke(x, y);
  pen = { x, y, down: false };
});
for (const name of ["pointerup", "pointercancel"]) {
  pad.addEventListener(name, () => {
    if (dragging && drawn) busy(pad.closest("form"), lookAtDrawing);
    dragging = false;
  });
}

const MOVES = { ArrowLeft: [-14, 0], ArrowRight: [14, 0], ArrowUp: [0, -14], ArrowDown: [0, 14] };
pad.addEventListener("keydown", (event) => {
  if (event.key in MOVES) {
    const [x, y] = MOVES[event.key].map((step, n) => Math.min(280, Math.max(0, [pen.x, pen.y][n] + step)));
    if (pen.down) stroke(x, y);
    pen = { x, y, down: pen.down };
  } else if (event.key === " ") {
    pen.down = !pen.down;
    if (pen.down) stroke(pen.x, pen.y);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    wipe();
  } else if (event.key === "Enter") {
    pad.closest("form").requestSubmit();
  } else {
    return;
  }
  event.preventDefault();
  tellPen();
});
pad.addEventListener("focus", tellPen);
pad.addEventListener("blur", tellPen);
$("wipe").addEventListener("click", () => { wipe(); answer.replaceChildren(); $("seen").hidden = true; });

// What is drawn fills the picture, as digits of data sets do: its square with a margin, on black.
function cropped() {
  const { data, width, height } = ink.getImageData(0, 0, pad.width, pad.height);
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (data[4 * (y * width + x)] < 32) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    }
  }
  const side = Math.max(right - left, bottom - top, 40) * 1.1;
  const square = document.createElement("canvas");
  square.width = square.height = 256;
  const to = square.getContext("2d");
  to.fillStyle = "#000";
  to.fillRect(0, 0, 256, 256);
  to.drawImage(pad, (left + right - side) / 2, (top + bottom - side) / 2, side, side, 0, 0, 256, 256);
  return new Promise((done) => square.toBlob(done, "image/png"));
}

async function lookAtDrawing() {
  if (!drawn) throw new Error("draw something first, or choose a picture");
  $("file").value = "";
  await lookAt(await cropped());
}

async function lookAt(file) {
  forget();
  const form = new FormData();
  form.append("file", file, "picture");
  const response = await ask(path($("explain").checked ? "explain" : "predict"), { method: "POST", body: form });
  const [found] = (await response.json()).outputs;
  answer.replaceChildren(element("h3", found.label), bars(found.scores));
  $("seen").hidden = !found.activation;
  if (found.activation) await drawMap(found.seen, found.activation);
}

async function drawMap(seen, activation) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${seen}`;
  await picture.decode();
  const map = $("map");
  map.width = map.height = Math.max(280, picture.width);
  const to = map.getContext("2d");
  to.imageSmoothingEnabled = picture.width >= 100;
  to.drawImage(picture, 0, 0, map.width, map.height);
  const grid = document.createElement("canvas");
  grid.width = activation[0].length;
  grid.height = activation.length;
  const pixels = grid.getContext("2d").createImageData(grid.width, grid.height);
  const most = Math.max(...activation.flat(), 1e-12);
  activation.flat().forEach((value, n) => pixels.data.set([255, 40, 0, (200 * value) / most], 4 * n));
  grid.getContext("2d").putImageData(pixels, 0, 0);
  to.imageSmoothingEnabled = true;
  to.drawImage(grid, 0, 0, map.width, map.height);
}

const pictures = pad.closest("form");
$("file").addEventListener("change", () => { if ($("file").files[0]) busy(pictures, () => lookAt($("file").files[0])); });
pictures.addEventListener("dragover", (event) => { event.preventDefault(); pictures.classList.add("over"); });
pictures.addEventListener("dragleave", () => pictures.classList.remove("over"));
pictures.addEventListener("drop", (event) => {
  event.preventDefault();
  pictures.classList.remove("over");
  if (event.dataTransfer.files[0]) busy(pictures, () => lookAt(event.dataTransfer.files[0]));
});
document.addEventListener("paste", (event) => {
  if (!pictures.hidden && event.clipboardData.files[0]) busy(pictures, () => lookAt(event.clipboardData.files[0]));
});

// ----------------------------------------------------------------------------------------------------------------- forms

async function write() {
  running = new AbortController();
  $("stop").disabled = false;
  const text = element("pre", $("prompt").value);
  answer.replaceChildren(text);
  const asked = {
    model: $("model").value, prompt: $("prompt").value, max_tokens: $("tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber, seed: $("textseed").valueAsNumber, stream: true,
  };
  try {
    const response = await ask("v1/completions", { ...asJson(asked), signal: running.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        text.append(event.choices[0].text);
      }
    }
  } finally {
    $("stop").disabled = true;
  }
}
$("stop").addEventListener("click", () => running?.abort());

const WORK = {
  "image-classification": lookAtDrawing,
  "text-generation": write,
  async "text-classification"() {
    const pair = models[$("model").value].about.texts === 2;
    const [found] = await predict(pair ? [$("text").value, $("pair").value] : $("text").value);
    answer.replaceChildren(element("h3", found.label), bars(found.scores));
  },
  async "token-classification"() {
    const [found] = await predict($("tagged").value);
    answer.replaceChildren(marked($("tagged").value, found.spans), element("p", found.spans.length ? "" : "nothing was found"));
  },
  async "question-answering"() {
    const [found] = await predict({ question: $("question").value, context: $("context").value });
    const silent = found.answer === "";
    const span = silent ? [] : [{ start: found.start, end: found.end, label: percent(found.score) }];
    answer.replaceChildren(element("h3", silent ? "no answer in the text" : found.answer), marked($("context").value, span));
  },
  async translation() {
    const lines = $("lines").value.split(/\r?\n/);
    const first = $("why").checked ? await explain(lines.shift()) : [];
    const found = [...first, ...(lines.length ? await predict(...lines) : [])];
    answer.replaceChildren(element("pre", found.map((one) => one.translation).join("\n")));
    if (first[0]?.source.length) answer.append(...attended(first[0]));
  },
  async "image-generation"() {
    const settings = { count: $("count").valueAsNumber, seed: $("seed").valueAsNumber };
    if ($("chosen").value.trim()) settings.classes = $("chosen").value.trim();
    const [found] = await predict(settings);
    const rows = found.rows.length ? `rows: ${found.rows.join(", ")}` : `${found.images} images`;
    answer.replaceChildren(element("img", "", { alt: `Images that the model has made; ${rows}`, src: `data:image/png;base64,${found.sheet}` }), element("p", rows));
  },
};

for (const form of document.querySelectorAll("form[data-task]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(form, WORK[form.dataset.task]);
  });
}

function choose() {
  const model = models[$("model").value];
  running?.abort();
  forget();
  answer.replaceChildren();
  $("error").hidden = $("seen").hidden = true;
  for (const form of document.querySelectorAll("form[data-task]")) form.hidden = form.dataset.task !== model?.task;
  if (!model) return;
  $("second").hidden = model.about.texts !== 2;
  $("languages").textContent = model.about.source ? `from ${model.about.source} to ${model.about.target}` : "";
  $("classes").hidden = !model.about.classes?.length;
  $("chosen").value = ""; // classes of another model
  $("count").value = Math.max(1, Math.min(5, Math.floor(100 / (model.about.classes?.length || 10))));
  $("chosen").title = (model.about.classes ?? []).join(", ");
}
$("model").addEventListener("change", choose);

async function begin() {
  $("error").hidden = true;
  const found = await (await ask("v1/models")).json();
  $("login").hidden = true;
  models = Object.fromEntries(found.data.map((one) => [one.id, one]));
  $("model").replaceChildren(...found.data.map((one) => element("option", `${one.id} (${one.task.replace("-", " ")})`, { value: one.id })));
  $("model").disabled = false;
  choose();
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  begin().catch(complain);
});

wipe();
begin().catch(complain);
