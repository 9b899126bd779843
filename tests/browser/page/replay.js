// Plays what tests/browser/traces.py has recorded of Python's classes to those of the same names in
// JavaScript, and says where they answer differently. Its docstring has the format.
//
// In a page: `replay(text, client)`, where `text` is one file of a recording and `client` has the
// classes. Under node, of all parts that there are:
//
//     node --experimental-default-type=module tests/browser/page/replay.js DIR [session link …]

/**
 * What came of one file.
 * @typedef {object} Replayed
 * @property {string} name the class
 * @property {number} objects
 * @property {number} calls
 * @property {string[]} differences the first of each object that has one
 */

/** How far two numbers may be apart. */
const TOLERANCE = 1e-9;

// Texts that are not Python's on purpose: what a decoder of JSON says, what values and settings are
// called.
/** @type {readonly [RegExp, string][]} */
const WORDS = [
  [/(is not JSON|does not decode): .*/s, "$1"],
  [/(is not UTF-8) \(.*\)/s, "$1"],
  [/\bNone\b/g, "null"],
  [/on_conflict="rename"/g, 'onConflict: "rename"'],
  [/MeshConfig\.max_pending_signals/g, "config.maxPendingSignals"],
];

/** @param {string} text */
const inOurWords = (text) => WORDS.reduce((said, [words, ours]) => said.replace(words, ours), text);

/** @param {string} text */
const bytesOf = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));

/** @param {(string | [number, number])[]} runs */
function runsOf(runs) {
  const pieces = runs.map((run) => (typeof run === "string" ? bytesOf(run) : new Uint8Array(run[1]).fill(run[0])));
  const out = new Uint8Array(pieces.reduce((size, piece) => size + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}

/** @param {unknown} value */
function shown(value) {
  const text = value instanceof Error ? `${value.name}: ${value.message}` : JSON.stringify(value, (_, each) => (each instanceof Uint8Array ? `${each.length} bytes` : each));
  return text === undefined ? "nothing" : text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

/** Where something is not as it was recorded. */
class Difference extends Error {
  /**
   * @param {string} where
   * @param {unknown} expected
   * @param {unknown} actual
   */
  constructor(where, expected, actual) {
    super(`${where} is ${shown(actual)}, not ${shown(expected)}`);
  }
}

/**
 * Throws where `actual` is not what was recorded.
 * @param {string} where
 * @param {any} expected
 * @param {any} actual
 */
function compare(where, expected, actual) {
  const wrong = () => new Difference(where, expected, actual);
  if (expected === null || actual === null || actual === undefined) {
    if (expected !== null || (actual ?? null) !== null) throw wrong();
  } else if (typeof expected === "number") {
    if (typeof actual !== "number" || !(Math.abs(expected - actual) <= TOLERANCE * Math.max(1, Math.abs(expected)))) throw wrong();
  } else if (typeof expected === "string") {
    if (expected !== actual && (typeof actual !== "string" || inOurWords(expected) !== inOurWords(actual))) throw wrong();
  } else if (typeof expected !== "object") {
    if (expected !== actual) throw wrong();
  } else if ("$times" in expected) {
    const [count, value] = expected.$times;
    compare(where, Array(count).fill(value), actual);
  } else if (Array.isArray(expected)) {
    if (!Array.isArray(actual) || actual.length !== expected.length) throw wrong();
    expected.forEach((each, place) => compare(`${where}[${place}]`, each, actual[place]));
  } else if ("$bytes" in expected || "$runs" in expected) {
    const bytes = "$bytes" in expected ? bytesOf(expected.$bytes) : runsOf(expected.$runs);
    if (!(actual instanceof Uint8Array) || actual.length !== bytes.length) throw wrong();
    const place = bytes.findIndex((each, at) => each !== actual[at]);
    if (place >= 0) throw new Difference(`${where}, byte ${place} of ${bytes.length},`, bytes[place], actual[place]);
  } else if ("$text" in expected || "$raw" in expected) {
    if (typeof actual !== "string") throw wrong();
    compare(`what ${where} says`, JSON.parse(expected.$text ?? expected.$raw), JSON.parse(actual));
  } else if ("$raised" in expected) {
    const { $raised, ...fields } = expected;
    if (!(actual instanceof Error) || (isOurs($raised) && actual.name !== $raised)) throw wrong();
    if (!isOurs($raised)) return;
    const { text, ...others } = fields;
    compare(`${where}.message`, text, actual.message);
    for (const [name, value] of Object.entries(others)) compare(`${where}.${name}`, value, Reflect.get(actual, name));
  } else {
    const fields = actual instanceof Map ? Object.fromEntries(actual) : actual;
    for (const [name, value] of Object.entries(expected)) compare(`${where}.${name}`, value, fields[name]);
    for (const name of Object.keys(fields)) {
      if (!(name in expected) && fields[name] !== undefined) throw new Difference(`${where}.${name}`, undefined, fields[name]);
    }
  }
}

/**
 * Whether it is an error of meshpeer's. Others say that the caller is at fault, each language in its
 * own way.
 * @param {string} name
 */
const isOurs = (name) => !["KeyError", "TypeError", "ValueError", "AssertionError", "IndexError"].includes(name);

/** One object, and what it was asked. */
class Life {
  /** @type {[name: string, args: any[], result: any][]} */
  #drew = [];
  /** What can be read of it. @type {Map<string, any>} */
  #after = new Map();
  #it;

  /**
   * @param {any} client
   * @param {any} cls
   * @param {any[]} configs
   * @param {any} line
   */
  constructor(client, cls, configs, line) {
    this.client = client;
    this.configs = configs;
    this.#it = Reflect.construct(cls, this.#arguments(line.args, line.kwargs));
    this.#read(line.after);
  }

  /**
   * Throws at the first difference.
   * @param {any[]} call
   */
  play([method, args, kwargs, expected, raised = null, after = {}, more = {}]) {
    for (const [name, value] of Object.entries(more.before ?? {})) {
      if (typeof value === "object") Object.assign(this.#it[name], this.#restored(value));
      else this.#it[name] = value;
      this.#after.set(name, value);
    }
    this.#drew = [...(more.drew ?? [])];
    const given = this.#arguments(args, kwargs);
    let result = null;
    let thrown = null;
    try {
      const target = more.via ? this.#it[more.via[0]](...more.via[1]) : this.#it;
      result = target[method](...given);
    } catch (error) {
      if (error instanceof Difference || raised === null) throw error;
      thrown = error;
    }
    compare("what was thrown", raised, thrown);
    if (raised === null) compare("the result", expected, result);
    for (const [place, values] of Object.entries(more.filled ?? {})) {
      compare(`argument ${place}`, values, given[Number(place)]);
    }
    if (this.#drew.length) throw new Difference("what it called", this.#drew, []);
    this.#read(after);
  }

  /** @param {any} changes */
  #read(changes) {
    for (const [name, value] of Object.entries(changes)) this.#after.set(name, value);
    for (const [name, value] of this.#after) {
      if (name === "peers") this.#readPeers(value);
      else compare(name, value, typeof this.#it[name] === "function" ? this.#it[name]() : this.#it[name]);
    }
  }

  /** @param {{[peerId: string]: any[]}} peers */
  #readPeers(peers) {
    const node = this.#it;
    for (const [peerId, expected] of Object.entries(peers)) {
      const link = node.link(peerId);
      compare(`the peer ${peerId}`, expected, [
        ...[node.stateOf(peerId), node.pathOf(peerId), node.rttOf(peerId), node.iceStateOf(peerId)],
        ...[link.state, link.epoch, node.delivery(peerId).out],
      ]);
    }
  }

  /**
   * @param {any[]} args
   * @param {any} kwargs
   */
  #arguments(args, kwargs) {
    const given = args.map((each) => this.#restored(each));
    return Object.keys(kwargs).length ? [...given, this.#restored(kwargs)] : given;
  }

  /**
   * A recorded value, made anew.
   * @param {any} value
   * @returns {any}
   */
  #restored(value) {
    if (typeof value !== "object" || value === null) return value;
    if (Array.isArray(value)) return value.map((each) => this.#restored(each));
    if ("$bytes" in value) return bytesOf(value.$bytes);
    if ("$runs" in value) return runsOf(value.$runs);
    if ("$raw" in value) return value.$raw;
    if ("$text" in value) return value.$text;
    if ("$times" in value) return Array.from({ length: value.$times[0] }, () => this.#restored(value.$times[1]));
    if ("$set" in value) return new Set(value.$set);
    if ("$config" in value) return this.configs[value.$config];
    if ("$function" in value) return this.#function(value.$function);
    if ("$raised" in value) {
      const { $raised, text, ...fields } = value;
      return new this.client[$raised](text, this.#restored(fields));
    }
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, this.#restored(each)]));
  }

  /**
   * A function that gives what the recorded one gave.
   * @param {string} name
   */
  #function(name) {
    return (/** @type {any[]} */ ...args) => {
      const next = this.#drew.shift();
      if (!next) throw new Difference("what it called", [], [name, args]);
      compare("what it called", [next[0], next[1]], [name, args]);
      return this.#restored(next[2]);
    };
  }
}

/**
 * Play one file.
 * @param {string} text
 * @param {any} client what has the classes, and those of errors
 * @returns {Replayed}
 */
export function replay(text, client) {
  const [head, ...lines] = text.trimEnd().split("\n").map((line) => JSON.parse(line));
  const cls = client[head.class];
  /** @type {any[]} */
  const configs = [];
  /** @type {Replayed} */
  const out = { name: head.class, objects: 0, calls: 0, differences: [] };
  for (const line of lines) {
    if ("config" in line) {
      configs[line.config] = Object.freeze(line.value);
      continue;
    }
    out.objects++;
    let place = -1;
    try {
      const life = new Life(client, cls, configs, line);
      for (const call of line.calls) {
        place++;
        life.play(call);
        out.calls++;
      }
    } catch (error) {
      out.differences.push(told(line, place, error));
    }
  }
  return out;
}

/**
 * @param {any} line
 * @param {number} place of the call
 * @param {unknown} error
 */
function told(line, place, error) {
  const why = error instanceof Difference ? error.message : error instanceof Error ? `it threw ${error.stack}` : String(error);
  const before = line.calls.slice(Math.max(0, place - 3), Math.max(0, place));
  const call = place < 0 ? ["constructor", line.args, line.kwargs] : line.calls[place];
  return [
    `object ${line.number} of ${line.from}, call ${place} of ${line.calls.length}: ${why}`,
    ...before.map((/** @type {any[]} */ each) => `  before: ${shown(each)}`),
    `  call: ${JSON.stringify(call).slice(0, 2000)}`,
  ].join("\n");
}

const PARTS = ["codec", "timing", "session", "mesh", "route", "reports", "trickle", "restart", "link", "delivery", "node"];

/**
 * @param {any} process node's, which a page has not
 * @param {string[]} argv
 */
async function main(process, [folder, ...names]) {
  const { existsSync, readFileSync } = process.getBuiltinModule("node:fs");
  const parts = new URL("../../../meshpeer/relay/web/client/", import.meta.url);
  const client = {};
  for (const part of PARTS) {
    if (existsSync(new URL(`${part}.js`, parts))) Object.assign(client, await import(`${parts}${part}.js`));
  }
  const all = ["deadlines", "backoff", ...PARTS.slice(2)];
  let failed = false;
  for (const name of names.length ? names : all) {
    const text = readFileSync(`${folder}/${name}.jsonl`, "utf8");
    const { objects, calls, differences } = replay(text, client);
    console.log(`${name}: ${calls} calls of ${objects} objects, ${differences.length} of them differ`);
    for (const each of differences.slice(0, 3)) console.log(each);
    failed ||= differences.length > 0;
  }
  process.exitCode = failed ? 1 : 0;
}

const { process } = /** @type {any} */ (globalThis);
if (process?.argv?.[1]?.endsWith("replay.js")) await main(process, process.argv.slice(2));
