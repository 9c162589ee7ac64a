"use strict";
// The page works on the one object in #data; see data_of() in page.py for its fields.
const data = JSON.parse(document.getElementById("data").textContent);
const T = data.tokens.length;
const tokens = document.getElementById("tokens");
const choice = document.getElementById("measure");
let pinned = Math.min(1, T - 1), marked = null; // marked: [row of the layer, expert]

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const withAlpha = (hex, alpha) =>
  hex + Math.round(255 * Math.min(1, Math.max(0, alpha))).toString(16).padStart(2, "0");
const signed = (x, digits = 2) => (x > 0 ? "+" : "") + x.toFixed(digits);
// as in a text, but with what cannot be seen made visible
const shown = (text) => text.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5");

// ------------------------------------------------------------------ what colours the text
const measures = new Map([["bits", { values: data.bits, unit: "bits to predict the token" }]]);
data.layers.forEach((layer, row) => {
  measures.set("entropy:" + row, { values: data.entropy[row], top: 1, unit: "entropy / ln(experts)" });
  measures.set("margin:" + row, { values: data.margin[row], top: 1, unit: "first probability minus second" });
});
data.changes.forEach((change, number) => {
  measures.set("change:" + number, { values: change.bits, signed: true, unit: "bits" });
});
Object.entries(data.knock_outs).forEach(([name, values]) => {
  const [row, expert] = name.split(":").map(Number);
  measures.set("knock_out:" + name, { values, signed: true, unit: "bits", marked: [row, expert] });
});
data.replays.forEach((replay, number) => {
  measures.set("replay:" + number, { values: replay.kl, unit: "nats, KL(A || B)" });
});

function paint() {
  const measure = measures.get(choice.value);
  const top = measure.top || Math.max(1e-9, ...measure.values.map(Math.abs));
  const more = colour("--more"), less = colour("--less");
  measure.values.forEach((value, place) => {
    const hue = measure.signed && value > 0 ? more : less;
    tokens.children[place].style.backgroundColor = value ? withAlpha(hue, (0.75 * Math.abs(value)) / top) : "";
  });
  const ends = measure.signed ? [signed(-top), signed(top)] : ["0", top.toPrecision(2)];
  const middle = measure.signed ? withAlpha(less, 0.75) + ", transparent, " + withAlpha(more, 0.75)
    : "transparent, " + withAlpha(less, 0.75);
  const legend = document.getElementById("legend");
  legend.replaceChildren(ends[0], document.createElement("i"), ends[1] + " " + measure.unit);
  legend.children[0].style.background = "linear-gradient(to right, " + middle + ")";
  document.querySelectorAll("tr[data-measure]").forEach((row) => {
    row.classList.toggle("pinned", row.dataset.measure === choice.value);
  });
  marked = measure.marked || null;
  maps.forEach((map) => map.draw());
}

function choose(name) {
  choice.value = name;
  paint();
}

// ------------------------------------------------------------------------------ one token
function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

function show(place) {
  const head = document.getElementById("token");
  head.textContent = "Token " + place + ": " + JSON.stringify(data.tokens[place]);
  document.getElementById("token_bits").textContent = place
    ? data.bits[place].toFixed(2) + " bits to predict it from the tokens before it"
    : "stands in front of every text, and is not predicted";
  const body = document.getElementById("token_layers");
  body.replaceChildren();
  data.layers.forEach((layer, row) => {
    const line = body.appendChild(document.createElement("tr"));
    line.appendChild(element("td", layer));
    const experts = line.appendChild(document.createElement("td")).appendChild(element("div", "", { class: "experts" }));
    data.index[row][place].forEach((expert, slot) => {
      const weight = data.weight[row][place][slot];
      const chip = experts.appendChild(document.createElement("span"));
      const bar = chip.appendChild(element("i", "", { class: "bar" }));
      bar.style.width = 1 + 40 * Math.min(1, weight) + "px";
      chip.append(expert + " (" + weight.toFixed(2) + ")");
    });
    line.appendChild(element("td", data.entropy[row][place].toFixed(2), { class: "number" }));
    line.appendChild(element("td", data.margin[row][place].toFixed(2), { class: "number" }));
    const next = data.next_best ? data.next_best[row][place] + " (-" + data.lead[row][place].toFixed(2) + ")" : "none";
    line.appendChild(element("td", next, { class: "number" }));
  });
}

function pin(place) {
  tokens.children[pinned].classList.remove("pinned");
  pinned = place;
  tokens.children[pinned].classList.add("pinned");
  show(pinned);
  maps.forEach((map) => map.draw());
}

data.tokens.forEach((text, place) => {
  const end = (text.match(/\n+$/) || [""])[0]; // a line break stays one
  tokens.appendChild(element("span", shown(text) + end, { "data-place": place }));
});
const placeOf = (event) => {
  const found = event.target.closest("[data-place]");
  return found ? Number(found.dataset.place) : null;
};
tokens.addEventListener("mouseover", (event) => {
  const place = placeOf(event);
  if (place !== null) show(place);
});
tokens.addEventListener("mouseleave", () => show(pinned));
tokens.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && pinned + step >= 0 && pinned + step < T) {
    pin(pinned + step);
    event.preventDefault();
  }
});
document.addEventListener("click", (event) => {
  const place = placeOf(event), row = event.target.closest("tr[data-measure]");
  if (row) choose(row.dataset.measure);
  if (place !== null) pin(place);
});
choice.addEventListener("change", paint);

// ---------------------------------------------------------------- experts by token, a map per layer
const LABELS = 104, STRIPS = ["entropy", "margin"], HUES = ["--more", "--less"];

class LayerMap {
  constructor(row) {
    this.row = row;
    this.box = document.getElementById("map_" + row);
    this.caption = document.getElementById("caption_" + row);
    [this.labels, this.cells] = this.box.querySelectorAll("canvas");
    this.scroll = this.box.querySelector(".scroll");
    this.high = data.experts > 16 ? 10 : data.experts > 8 ? 13 : 18;
    this.cells.addEventListener("mousemove", (event) => this.tell(this.at(event)));
    this.cells.addEventListener("mouseleave", () => this.tell(null));
    this.cells.addEventListener("click", (event) => pin(this.at(event)[0]));
    this.labels.addEventListener("click", (event) => {
      const name = "knock_out:" + row + ":" + Math.floor(event.offsetY / this.high);
      if (measures.has(name)) choose(name);
    });
    this.scroll.addEventListener("scroll", () => {
      maps.forEach((map) => { map.scroll.scrollLeft = this.scroll.scrollLeft; });
    });
  }
  at(event) {
    return [Math.min(T - 1, Math.floor(event.offsetX / this.wide)), Math.floor(event.offsetY / this.high)];
  }
  tell(where) {
    if (!where) {
      this.caption.textContent = "";
      return show(pinned);
    }
    const [place, line] = where, { row } = this;
    show(place);
    const slot = data.index[row][place].indexOf(line);
    const what = line >= data.experts ? "" : ", expert " + line + ": " +
      (slot < 0 ? "not chosen" : "weight " + data.weight[row][place][slot].toFixed(3));
    this.caption.textContent = "token " + place + " " + JSON.stringify(data.tokens[place]) + what;
  }
  sized(canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 32000 / width); // browsers bound the size of a canvas
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    return context;
  }
  draw() {
    const { row, high } = this, E = data.experts, gap = 4;
    const height = high * (E + STRIPS.length) + gap, less = colour("--less"), grey = colour("--grey");
    const room = document.getElementById("maps").clientWidth - LABELS;
    this.wide = Math.min(26, Math.max(5, Math.floor(room / T)));
    const names = this.sized(this.labels, LABELS, height);
    names.font = Math.min(11, high - 1) + "px FONT, sans-serif";
    names.textBaseline = "middle";
    const most = Math.max(...data.load[row]);
    data.load[row].forEach((share, expert) => {
      const middle = high * (expert + 0.5);
      names.fillStyle = withAlpha(less, 0.75);
      names.fillRect(26, middle - 0.3 * high, (34 * share) / most, 0.6 * high);
      const bold = marked && marked[0] === row && marked[1] === expert;
      names.fillStyle = colour(bold ? "--more" : "--ink");
      names.textAlign = "right";
      names.fillText((bold ? "> " : "") + expert, 21, middle);
      names.fillStyle = grey;
      names.fillText((100 * share).toFixed(0) + " %", LABELS - 8, middle);
    });
    names.fillStyle = grey;
    STRIPS.forEach((name, number) => names.fillText(name, LABELS - 8, gap + high * (E + number + 0.5)));
    const cells = this.sized(this.cells, this.wide * T, height), inner = this.wide > 7 ? 1 : 0;
    const hues = HUES.map(colour);
    cells.fillStyle = colour("--panel");
    cells.fillRect(0, 0, this.wide * T, high * E);
    for (let place = 0; place < T; place++) {
      const left = this.wide * place, wide = this.wide - inner;
      data.index[row][place].forEach((expert, slot) => {
        cells.fillStyle = withAlpha(less, 0.18 + 0.82 * data.weight[row][place][slot]);
        cells.fillRect(left, high * expert, wide, high - 1);
      });
      STRIPS.forEach((name, number) => {
        cells.fillStyle = withAlpha(hues[number], 0.9 * data[name][row][place]);
        cells.fillRect(left, gap + high * (E + number), wide, high - 1);
      });
      if (data.replays.some((replay) => replay.flipped[row][place])) {
        cells.fillStyle = colour("--ink");
        cells.fillRect(left, high * E, wide, gap - 1);
      }
    }
    cells.strokeStyle = colour("--ink");
    cells.lineWidth = 1.5;
    cells.strokeRect(this.wide * pinned + 0.5, 0.75, this.wide - 1, height - 1.5);
  }
}

const maps = data.layers.map((_, row) => new LayerMap(row));
new ResizeObserver(() => maps.forEach((map) => map.draw())).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
pin(pinned);
paint();
