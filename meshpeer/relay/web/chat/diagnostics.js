// What is known of the connections, of the timers and of the last events; all of it as JSON.

import { byId, el, keyed, setHidden, setText } from "../common/dom.js";
import { short, time } from "../common/format.js";
import { copyField, copyText } from "./invite.js";

const EVERY = 1000; // milliseconds between two looks, while it is open

export class Diagnostics {
  #mesh = null;
  #timer = 0;
  #dialog = byId("diagnostics");

  constructor() {
    byId("show-diagnostics").addEventListener("click", () => {
      this.#say("");
      setHidden(byId("json-field"), true);
      this.#dialog.showModal();
      this.#look();
    });
    this.#dialog.addEventListener("close", () => clearTimeout(this.#timer));
    byId("copy").addEventListener("click", () => this.#copy());
    byId("restart-all").addEventListener("click", () => {
      try {
        this.#mesh?.debug.forceICERestart();
        this.#say("ICE restarts");
      } catch {
        this.#say("You are out of the room");
      }
    });
    byId("test-all").addEventListener("click", () => this.#test());
  }

  use(mesh) {
    this.#mesh = mesh;
  }

  #say(text) {
    setText(byId("copied"), text);
  }

  async #look() {
    clearTimeout(this.#timer);
    const facts = this.#mesh ? await this.#facts() : {};
    if (!this.#dialog.open) return;
    show(byId("facts"), facts);
    this.#timer = setTimeout(() => this.#look(), EVERY);
  }

  async #facts() {
    try {
      return await this.#mesh.debug.getDiagnostics();
    } catch (error) {
      return { error: error.message };
    }
  }

  async #copy() {
    if (!this.#mesh) return this.#say("There is nothing yet");
    const text = JSON.stringify(await this.#facts(), plain, 2);
    if (await copyText(text)) return this.#say("Copied");
    // Pages without TLS have no clipboard.
    byId("json").value = text;
    setHidden(byId("json-field"), false);
    this.#say(copyField(byId("json")) ? "Copied" : "Selected: copy it");
  }

  async #test() {
    if (!this.#mesh) return;
    this.#say("Testing");
    try {
      const tests = Object.values(await this.#mesh.debug.testP2PWithAllPeers());
      const answered = tests.filter((test) => test.error === null).length;
      this.#say(`${answered} of ${tests.length} answered directly`);
    } catch {
      this.#say("You are out of the room");
    }
  }
}

/** For JSON.stringify: what JSON has no word for. */
export function plain(_key, value) {
  if (value instanceof Map) return Object.fromEntries(value);
  if (value instanceof Set) return [...value];
  if (value instanceof Error) return { name: value.name, message: value.message, code: value.code };
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  return typeof value === "bigint" ? String(value) : value;
}

// --- any JSON as elements ---
// An object of objects becomes parts that open, other facts a list, an array of objects a table. What
// is there already is filled anew: what was opened stays open, what is selected stays selected.

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const words = (name) => name.replace(/([a-z0-9])([A-Z])/g, (_, a, b) => `${a} ${b.toLowerCase()}`).replace(/^[A-Z](?=[a-z])/, (a) => a.toLowerCase());
/** What is said in one line: a candidate, a pair of them, a handful of figures. */
const isLine = (value) => isObject(value) && (["address", "local"].some((name) => name in value) || (Object.keys(value).length < 7 && Object.values(value).every((each) => typeof each === "number")));
const isPart = (value) => (isObject(value) && Object.keys(value).length > 0 && !isLine(value)) || (Array.isArray(value) && value.some(isObject));

function show(place, value) {
  const facts = JSON.parse(JSON.stringify(value, plain) ?? "null");
  showObject(place, isObject(facts) ? facts : { value: facts }, 0);
}

function showObject(place, facts, depth) {
  const list = (place.factsList ??= place.appendChild(el("dl")));
  const parts = (place.factsParts ??= place.appendChild(el("div")));
  const entries = Object.entries(facts).filter(([name]) => name !== "kind");
  keyed(list, entries.filter(([, each]) => !isPart(each)), ([name]) => name, ([name]) => {
    const row = el("div", { className: "fact" }, el("dt", {}, words(name)), el("dd"));
    return row;
  }, (row, [name, each]) => setText(row.lastChild, shown(name, each)));
  setHidden(list, !list.childElementCount);
  keyed(parts, entries.filter(([, each]) => isPart(each)), ([name]) => name, ([, each]) => {
    const open = depth > 1 || (depth === 0 && !Array.isArray(each)); // who is looked at is opened with all that is known
    return el("details", { open }, el("summary", {}, el("bdi"), el("span", { className: "chip" })), el("div"));
  }, (part, [name, each]) => {
    setText(part.querySelector("bdi"), each.report?.name ?? (depth === 1 ? name : words(name)));
    setText(part.querySelector(".chip"), summary(each));
    setHidden(part.querySelector(".chip"), !summary(each));
    const inner = part.lastChild;
    if (Array.isArray(each)) showTable(inner, each);
    else showObject(inner, each, depth + 1);
  });
}

function summary(value) {
  if (Array.isArray(value)) return String(value.length);
  const { state, path, rtt } = value.report ?? value;
  const facts = [state, path, typeof rtt === "number" ? short(rtt) : null];
  return facts.filter((each) => typeof each === "string").join(" · ");
}

function showTable(place, items) {
  const rows = items.filter(isObject).map((row) => (isObject(row.event) ? line(row) : row));
  if (rows.some((row) => "at" in row)) rows.reverse(); // the latest event first
  const names = [...new Set(rows.flatMap(Object.keys))];
  const text = JSON.stringify(rows);
  if (place.factsText === text) return;
  place.factsText = text;
  const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, words(name))));
  const body = rows.map((row) => el("tr", {}, ...names.map((name) => el("td", {}, shown(name, row[name])))));
  place.className = "table";
  place.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

/** An event as three columns. */
function line({ at, event: { kind, ...facts } }) {
  return { at, event: words(kind), facts: compact(facts) };
}

function shown(name, value) {
  if (value === null || value === undefined || value === "") return "–";
  if (name === "at" || name === "since") return time(new Date(value).getTime() / 1000);
  if (typeof value === "number") return String(Number.isInteger(value) ? value : Number(value.toPrecision(4)));
  if (Array.isArray(value) && !value.some((each) => typeof each === "object")) return value.join(", ") || "–";
  return typeof value === "object" ? compact(value) : String(value);
}

/** An object in a line. */
function compact(value) {
  if (!isObject(value)) return JSON.stringify(value);
  if (isObject(value.local) && isObject(value.remote)) return `${compact(value.local)} → ${compact(value.remote)}`;
  if ("address" in value && "port" in value) return [value.type, value.protocol, `${value.address || "(hidden)"}:${value.port}`].filter(Boolean).join(" ");
  const facts = Object.entries(value).filter(([name, each]) => each !== null && each !== "" && name !== "kind");
  return facts.map(([name, each]) => `${words(name)}: ${typeof each === "object" ? compact(each) : shown(name, each)}`).join(", ");
}
