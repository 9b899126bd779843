// meshpeer in a browser: a peer of a room like any other, the twin of Python's PeerManager.
//
//     import { PeerManager } from "https://relay.example.org/meshpeer.js";
//
//     const mesh = new PeerManager("wss://relay.example.org", { room: "lobby", name: "Ann" });
//     await mesh.start();
//     mesh.addEventListener("message", ({ detail: { sender, data } }) => console.log(sender.name, data));
//     await mesh.broadcast("hello");
//
// This file is made of client/*.js: change those, then run `make client`.

// --- codec.js ------------------------------------------------------------------------------------

// What goes over the wire, and the errors: the same as meshpeer's errors.py, core/values.py,
// core/frames.py, core/messages.py and core/forward.py. docs/protocol.md specifies it byte for byte,
// tests/vectors has examples.
//
// A message or a frame is a plain object with its class's name in `kind` and all of its fields; on
// the wire only this module writes and reads it. Signalling is text (JSON) here, not bytes: what
// `encode` returns, what the `decode…` take, and the `body` of a signal, which is the JSON of a link
// message as it is forwarded. Data frames are Uint8Arrays.

// --- errors ----------------------------------------------------------------------------------------

/** Base of every error that meshpeer throws on purpose. */
class MeshError extends Error {
  /** @param {string} text */
  constructor(text) {
    super(text);
    this.name = new.target.name;
  }
}

/** The calling program did something it should not; the text says what to do instead. */
class UsageError extends MeshError {}

/** A setting is out of its range; the text names the field, the value and the range. */
class ConfigError extends UsageError {}

/** Data that is neither text, bytes nor JSON-able. */
class InvalidData extends UsageError {}

/** A message over `maxMessageSize`; nothing of it was sent. */
class MessageTooLarge extends UsageError {}

/** More channels of messages than the peer takes; nothing of the message was sent. */
class TooManyChannels extends UsageError {}

/** An iterator was not read and fell too far behind; what it missed is lost to it. */
class SlowReader extends UsageError {}

/** A state machine was fed an input that its table does not list; it has not changed. */
class UnexpectedInput extends UsageError {}

/** What the call was made on is closed; `reason` says why. */
class ClosedError extends MeshError {
  /**
   * @param {string} text
   * @param {{reason?: string}} [options]
   */
  constructor(text, { reason = "closed" } = {}) {
    super(text);
    this.reason = reason;
  }
}

/** The manager is closed, or was not started. */
class MeshClosed extends ClosedError {}

/** A newer process or page took this peer id over; this one does not come back. */
class IdentityReplaced extends MeshClosed {}

/** The operator of the relay took us out of the room; this page does not come back. */
class Removed extends MeshClosed {}

/** The peer left, its seat ran out, or a new incarnation took its place. */
class PeerClosed extends ClosedError {}

/**
 * A message that was accepted and not acknowledged; `data` is what was given to `send`.
 * @typedef {{kind: "UndeliveredMessage", data: unknown, channel: string}} UndeliveredMessage
 */

/**
 * The peer is gone, and has not acknowledged all that was sent to it.
 *
 * `messages` has those, in the order in which they were accepted. Whether the last of them arrived
 * before it went can't be known.
 */
class Undelivered extends PeerClosed {
  /**
   * @param {string} text
   * @param {{reason?: string, messages?: readonly UndeliveredMessage[]}} [options]
   */
  constructor(text, { reason = "closed", messages = [] } = {}) {
    super(text, { reason });
    this.messages = [...messages];
  }
}

/** The data channel is closed, on this side or the other. */
class ChannelClosed extends ClosedError {}

/** Nobody's fault: something could not be reached in time. Trying again may help. */
class NetworkError extends MeshError {}

/** The signalling service can't be reached; the text names its address and the cause. */
class SignalingUnavailable extends NetworkError {}

/** Too many signals wait for the signalling service already; this one was not taken. */
class SignalingBacklog extends NetworkError {}

/** A connection attempt to a peer did not succeed. */
class ConnectionFailed extends NetworkError {}

/** A deadline given by the caller passed; the text says what had not happened. */
class MeshTimeout extends NetworkError {}

/**
 * The relay said no.
 *
 * `code` is the protocol's word for it, `field` the offending field where there is one, `retryAfter`
 * the seconds after which another try may succeed, or null.
 */
class RefusedError extends MeshError {
  /**
   * @param {string} text
   * @param {{code?: string, field?: string | null, retryAfter?: number | null}} [options]
   */
  constructor(text, { code = "refused", field = null, retryAfter = null } = {}) {
    super(text);
    this.code = code;
    this.field = field;
    this.retryAfter = retryAfter;
  }
}

/** The peer id belongs to another live process or page in this room. */
class PeerIdTaken extends RefusedError {}

/** The room has as many members as the relay allows. */
class RoomFull extends RefusedError {}

/** The relay has as many rooms as it allows. */
class TooManyRooms extends RefusedError {}

/** More messages in a second than the relay takes from one member. */
class RateLimited extends RefusedError {}

/** The relay takes only who has a join token; there was none, or it is forged or expired. */
class Unauthorized extends RefusedError {}

/** The join token is valid, but not for this room or this peer id. */
class Forbidden extends RefusedError {}

/** The application at the other side said no; the text is its. */
class RemoteError extends MeshError {}

/** A request was answered with an error. */
class RequestFailed extends RemoteError {}

/** A file was refused, or what arrived is not what was sent. */
class TransferFailed extends RemoteError {}

/**
 * The other side sent something malformed, oversized, forged or out of place.
 *
 * It was refused and nothing else changed. `code` is one word for programs, `field` the path of the
 * offending field (`"$"` is the whole message).
 */
class ProtocolError extends MeshError {
  /**
   * @param {string} text
   * @param {{code?: string, field?: string}} [options]
   */
  constructor(text, { code = "malformed", field = "$" } = {}) {
    super(text);
    this.code = code;
    this.field = field;
  }
}

/** @type {ReadonlyMap<string, typeof RefusedError>} */
const REFUSALS = new Map([
  ["peer_id_taken", PeerIdTaken],
  ["room_full", RoomFull],
  ["too_many_rooms", TooManyRooms],
  ["rate_limited", RateLimited],
  ["unauthorized", Unauthorized],
  ["forbidden", Forbidden],
]);

/**
 * The error that stands for the relay's `code`; an unknown code is a RefusedError.
 * @param {string} code
 * @param {string} text
 * @param {{field?: string | null, retryAfter?: number | null}} [options]
 */
function refusal(code, text, { field = null, retryAfter = null } = {}) {
  return new (REFUSALS.get(code) ?? RefusedError)(text, { code, field, retryAfter });
}

// --- texts -----------------------------------------------------------------------------------------

const utf8Encoder = new TextEncoder();
// A byte order mark is part of a text like any other character.
const utf8Decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const LONE_SURROGATE = /\p{Surrogate}/u;

/**
 * How many bytes of UTF-8 `text` has.
 * @param {string} text
 */
function utf8Length(text) {
  let size = text.length;
  for (let at = 0; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    if (unit < 0x80) continue;
    // Each half of a surrogate pair stands for two bytes of four.
    size += unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 1 : 2;
  }
  return size;
}

const UNPRINTABLE = /[\p{C}\p{Z}]/u;

/** @param {string} character */
const isPrintable = (character) => character === " " || !UNPRINTABLE.test(character);

/**
 * `text` in quotes, as Python shows it.
 * @param {string} text
 */
function repr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let out = quote;
  for (const character of text) {
    if (character === quote || character === "\\") out += `\\${character}`;
    else if (isPrintable(character)) out += character;
    else if (character === "\n") out += "\\n";
    else if (character === "\r") out += "\\r";
    else if (character === "\t") out += "\\t";
    else {
      const code = /** @type {number} */ (character.codePointAt(0));
      const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
      out += `\\${letter}${code.toString(16).padStart(digits, "0")}`;
    }
  }
  return out + quote;
}

/**
 * How the order of two texts is, by code points: below, equal to or above 0. `<` compares code units.
 * @param {string} a
 * @param {string} b
 */
function compareTexts(a, b) {
  const size = Math.min(a.length, b.length);
  for (let at = 0; at < size; at++) {
    const x = a.charCodeAt(at);
    const y = b.charCodeAt(at);
    if (x === y) continue;
    // Surrogates stand for the highest code points, but are not the highest code units.
    const high = (/** @type {number} */ unit) => unit >= 0xd800 && unit < 0xe000;
    return high(x) === high(y) ? x - y : high(x) ? 1 : -1;
  }
  return a.length - b.length;
}

// --- bytes -----------------------------------------------------------------------------------------

// What an array buffer of its own costs is a microsecond or more, unless it is as small as ON_HEAP;
// so those up to IN_SLAB share one. What holds on to one of its pieces holds on to a SLAB.
const ON_HEAP = 64;
const IN_SLAB = 512;
const SLAB = 2048;
let slab = new Uint8Array(SLAB);
let slabUsed = 0;

/**
 * Bytes to be written to.
 * @param {number} size
 */
function allocate(size) {
  if (size <= ON_HEAP || size > IN_SLAB) return new Uint8Array(size);
  if (slabUsed + size > SLAB) {
    slab = new Uint8Array(SLAB);
    slabUsed = 0;
  }
  slabUsed += size;
  return slab.subarray(slabUsed - size, slabUsed);
}

/**
 * Copies `data` into `out`.
 * @param {Uint8Array} out
 * @param {number} at
 * @param {Uint8Array} data
 */
function put(out, at, data) {
  const size = data.length;
  if (size > 32) out.set(data, at);
  else for (let i = 0; i < size; i++) out[at + i] = data[i];
  return at + size;
}

/** @param {readonly Uint8Array[]} pieces */
function concatenated(pieces) {
  let size = 0;
  for (const piece of pieces) size += piece.length;
  const out = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) at = put(out, at, piece);
  return out;
}

const SCRATCH = 16384;
const scratch = new Uint8Array(3 * SCRATCH);

/**
 * `text` in UTF-8.
 * @param {string} text
 */
function utf8(text) {
  if (text.length > SCRATCH) return utf8Encoder.encode(text);
  const { written } = utf8Encoder.encodeInto(text, scratch);
  if (written > IN_SLAB) return scratch.slice(0, written);
  const out = allocate(written);
  put(out, 0, scratch.subarray(0, written));
  return out;
}

/** @param {Uint8Array} data */
function isAscii(data) {
  let all = 0;
  for (let at = 0; at < data.length; at++) all |= data[at];
  return all < 0x80;
}

// --- values ----------------------------------------------------------------------------------------

/**
 * Arrays and objects inside each other in a JSON value: half of what Python's stack allows, so that
 * what one side may send the other can decode, wherever in its program it does.
 */
const MAX_VALUE_DEPTH = 512;

/** What the bytes of a message stand for. */
const Kind = Object.freeze({ BYTES: 0, TEXT: 1, JSON: 2 });
const KIND_NAMES = ["bytes", "text", "json"];
/** Bytes up to which text is looked at here: calling a decoder takes longer. */
const SHORT = 128;

/** @typedef {0 | 1 | 2} KindValue */

/**
 * The kind and the bytes of text, bytes (an ArrayBuffer or a view) or JSON-able data. Those of bytes
 * are the caller's own: they are to be copied, as `encodeMessage` does, before it goes on.
 *
 * Throws `InvalidData`, also for what JSON would silently leave out or show as `{}`: undefined and
 * functions, and at any depth Map, Set, ArrayBuffer and the like.
 * @param {unknown} data
 * @returns {[KindValue, Uint8Array]}
 */
function encodeValue(data) {
  if (typeof data === "string") {
    if (LONE_SURROGATE.test(data)) throw new InvalidData("text that is not valid Unicode can't be sent");
    return [Kind.TEXT, utf8(data)];
  }
  if (data instanceof Uint8Array) return [Kind.BYTES, data];
  if (ArrayBuffer.isView(data)) return [Kind.BYTES, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)];
  if (isBuffer(data)) return [Kind.BYTES, new Uint8Array(data)];
  let text;
  try {
    text = JSON.stringify(data);
    if (text === undefined) throw new TypeError("JSON has nothing for it");
    if (text.includes("{}") || text.includes('{"0":')) JSON.stringify(data, refuseOpaque);
  } catch (error) {
    const why = error instanceof Error ? error.message : error;
    throw new InvalidData(`${typeName(data)} can't be sent (${why}): give text, bytes or JSON-able data`);
  }
  if (text.includes("\\ud") && ESCAPED_SURROGATE.test(text)) {
    throw new InvalidData(`${typeName(data)} can't be sent: a text in it is not valid Unicode`);
  }
  if (isNestedDeeper(text, MAX_VALUE_DEPTH)) {
    throw new InvalidData(
      `${typeName(data)} can't be sent: it is nested deeper than ${MAX_VALUE_DEPTH} arrays and objects`,
    );
  }
  return [Kind.JSON, utf8(text)];
}

// JSON.stringify writes so what is half of a pair, and nothing else.
const ESCAPED_SURROGATE = /(?<!\\)(?:\\\\)*\\ud[89a-f]/;

/**
 * @param {unknown} data
 * @returns {data is ArrayBuffer | SharedArrayBuffer}
 */
function isBuffer(data) {
  const tag = Object.prototype.toString.call(data);
  return tag === "[object ArrayBuffer]" || tag === "[object SharedArrayBuffer]";
}

/** @param {unknown} data */
function typeName(data) {
  if (data === null) return "null";
  return typeof data === "object" ? (data.constructor?.name ?? "object") : typeof data;
}

/**
 * A replacer for JSON.stringify, which throws for objects that have no fields to show.
 * @param {string} _key
 * @param {unknown} value
 */
function refuseOpaque(_key, value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  // An object of another window has another Object.prototype.
  const prototype = Object.getPrototypeOf(value);
  const isPlain = prototype === null || Object.getPrototypeOf(prototype) === null;
  if (ArrayBuffer.isView(value) || (!isPlain && !Object.keys(value).length)) {
    throw new TypeError(`${typeName(value)} is nothing that JSON has`);
  }
  return value;
}

/**
 * Whether `text`, which is JSON, has more than `limit` arrays and objects inside each other.
 * @param {string} text
 * @param {number} limit
 */
function isNestedDeeper(text, limit) {
  if (text.length <= 2 * limit) return false;
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const c = text.charCodeAt(at);
    if (c === CH_QUOTE) {
      for (at++; text.charCodeAt(at) !== CH_QUOTE; at++) if (text.charCodeAt(at) === CH_BACKSLASH) at++;
    } else if (c === CH_OPEN_ARRAY || c === CH_OPEN_OBJECT) {
      if (++depth > limit) return true;
    } else if (c === CH_CLOSE_ARRAY || c === CH_CLOSE_OBJECT) depth--;
  }
  return false;
}

/**
 * Throws `ProtocolError` unless `decodeValue` can decode `payload`.
 *
 * Nothing is built for it: the objects of a JSON value may take many times the memory of its bytes,
 * and that is to be spent when the application takes it.
 * @param {KindValue} kind
 * @param {Uint8Array} payload
 */
function checkValue(kind, payload) {
  if (kind === Kind.BYTES || (kind === Kind.TEXT && payload.length <= SHORT && isAscii(payload))) return;
  let text;
  try {
    text = utf8Decoder.decode(payload);
  } catch {
    throw badValue(kind, "it is not UTF-8");
  }
  if (kind === Kind.TEXT) return;
  const reader = new JsonReader(text, VALUE_ERRORS);
  reader.skip();
  reader.finish();
  if (reader.hasLongNumber) new JsonReader(text, VALUE_ERRORS).skip(true);
  if (reader.deepest > MAX_VALUE_DEPTH) throw VALUE_ERRORS.tooDeep();
}

/**
 * @param {KindValue} kind
 * @param {string} why
 */
function badValue(kind, why) {
  const text = `a message of kind ${KIND_NAMES[kind]} does not decode: ${why}`;
  return new ProtocolError(text, { code: "bad_message", field: "payload" });
}

/**
 * The data that `encodeValue` was given; bytes in a buffer of their own. `payload` has passed
 * `checkValue`.
 * @param {KindValue} kind
 * @param {Uint8Array} payload
 * @returns {any}
 */
function decodeValue(kind, payload) {
  if (kind === Kind.BYTES) return payload.length === payload.buffer.byteLength ? payload : payload.slice();
  const text = utf8Decoder.decode(payload);
  return kind === Kind.TEXT ? text : JSON.parse(text);
}

// --- data frames -----------------------------------------------------------------------------------

const FRAME_VERSION = 1;
/** Bytes of the largest frame: what an endpoint takes that says nothing of its limit (RFC 8841). */
const MAX_FRAME = 65536;
/** Bytes of a message that one part may have. */
const MAX_PART = 16384;
/** Bytes that a part has which is not the last of its message, so that parts stay few. */
const MIN_PART = 1024;
/** What a message is charged beyond its bytes, with its first part: what keeping one takes. */
const OVERHEAD = 128;
/** Bytes of UTF-8 that the name of a channel may have. */
const MAX_CHANNEL = 255;
/** What the names of channels begin with that applications can't use. */
const RESERVED = "meshpeer.";
/** Channels that one side may use: a `Start` that names all of them fits into a frame. */
const MAX_CHANNELS = 200;
/** The largest number in a frame: what JavaScript counts without a fault. */
const MAX_COUNT = Number.MAX_SAFE_INTEGER;
/** Bit of a part's flags: a message begins with it. */
const FIRST = 0x01;
/** Bit of a part's flags: a message ends with it. */
const LAST = 0x02;

const [F_PARTS, F_RESUME, F_START, F_OPEN, F_ACK, F_PING, F_PONG, F_BYE] = [1, 2, 3, 4, 5, 6, 7, 8].map(
  (type) => (FRAME_VERSION << 4) | type,
);
const KIND_SHIFT = 2;
const ROLE_SHIFT = 4;
const ASKS = 0x01;

/** What a message is for. ERROR: a reply that says why there is no other. */
const Role = Object.freeze({ PLAIN: 0, REQUEST: 1, REPLY: 2, ERROR: 3 });

/** @typedef {0 | 1 | 2 | 3} RoleValue */

/**
 * A piece of a message, as it was read. `flags`: bit 0: the first of its message, bit 1: the last,
 * bits 2-3: `Kind`, bits 4-5: `Role`. `total`: bytes of the whole message; 0 unless it is the first
 * and not the last. `number`: of the request that is made or answered; 0 unless it is the first of
 * such a message.
 * @typedef {{kind: "Part", flags: number, total: number, number: number, payload: Uint8Array}} Part
 */
/**
 * Parts of one channel that follow each other; `seq` is the number of the first of them, from 0.
 * @typedef {{kind: "Run", channel: number, seq: number, parts: Part[]}} Run
 */
/**
 * What the receiving side has of a channel, and takes. `next`: the number of the part that it waits
 * for. `limit`: how much may be sent in all, by what parts are charged.
 * @typedef {{kind: "Limit", channel: number, next: number, limit: number}} Limit
 */
/**
 * A channel of the sender, and where it goes on. `seq`: the number of the part that follows.
 * `offset`: what all the parts before it were charged.
 * @typedef {{kind: "Channel", channel: number, seq: number, offset: number, name: string}} FrameChannel
 */
/**
 * What messages are made of.
 * @typedef {{kind: "Parts", runs: Run[]}} Parts
 */
/**
 * I want to receive here from now on. Answer with a `Start` of the same round. `ask`: do the same
 * for me. `window` is the limit of every channel that `limits` does not name.
 * @typedef {{
 *   kind: "Resume", round: number, ask: boolean, maxMessage: number, maxChannels: number,
 *   window: number, limits: readonly Limit[],
 * }} Resume
 */
/**
 * Parts follow here, as the `Resume` of this round asked for. All channels in use are named.
 * @typedef {{kind: "Start", round: number, channels: readonly FrameChannel[]}} Start
 */
/**
 * The sender's next channel.
 * @typedef {{kind: "Open", channel: number, name: string}} Open
 */
/**
 * What has arrived, and new limits.
 * @typedef {{kind: "Ack", limits: readonly Limit[]}} FrameAck
 */
/**
 * Asks for an `Ack` of what has arrived, without delay; and, unless the nonce is 0, for a `Pong` with
 * the same one behind it.
 * @typedef {{kind: "Ping", nonce: number}} FramePing
 */
/** @typedef {{kind: "Pong", nonce: number}} FramePong */
/**
 * The sender leaves the room.
 * @typedef {{kind: "Bye"}} Bye
 */
/** @typedef {Parts | Resume | Start | Open | FrameAck | FramePing | FramePong | Bye} Frame */

/**
 * What the bytes of the message stand for. Of the first part only.
 * @param {Part} part
 */
const partKind = (part) => /** @type {KindValue} */ ((part.flags >> KIND_SHIFT) & 3);

/**
 * What the message is for. Of the first part only.
 * @param {Part} part
 */
const partRole = (part) => /** @type {RoleValue} */ ((part.flags >> ROLE_SHIFT) & 3);

/** @param {number} value */
function countSize(value) {
  let size = 1;
  for (; value >= 0x80; value = Math.floor(value / 0x80)) size++;
  return size;
}

/**
 * Writes a whole number; returns where what follows it begins.
 * @param {Uint8Array} out
 * @param {number} at
 * @param {number} value
 */
function putCount(out, at, value) {
  for (; value >= 0x80; value = Math.floor(value / 0x80)) out[at++] = (value % 0x80) | 0x80;
  out[at] = value;
  return at + 1;
}

/**
 * The parts of a message, each with what it is charged.
 * @param {KindValue} kind
 * @param {Uint8Array} payload
 * @param {RoleValue} [role]
 * @param {number} [number]
 * @returns {[Uint8Array, number][]}
 */
function encodeMessage(kind, payload, role = Role.PLAIN, number = 0) {
  const flags = (kind << KIND_SHIFT) | (role << ROLE_SHIFT);
  const total = payload.length;
  /** @type {[Uint8Array, number][]} */
  const parts = [];
  let from = 0;
  do {
    const size = Math.min(total - from, MAX_PART);
    const isFirst = from === 0;
    const isEnd = from + size === total;
    const sizes = isFirst && !isEnd ? countSize(total) : 0;
    const numbers = isFirst && role ? countSize(number) : 0;
    const part = allocate(1 + sizes + numbers + countSize(size) + size);
    part[0] = (isFirst ? flags | FIRST : 0) | (isEnd ? LAST : 0);
    let at = 1;
    if (sizes) at = putCount(part, at, total);
    if (numbers) at = putCount(part, at, number);
    at = putCount(part, at, size);
    put(part, at, size === total ? payload : payload.subarray(from, from + size));
    parts.push([part, isFirst ? size + OVERHEAD : size]);
    from += size;
  } while (from < total);
  return parts;
}

/**
 * Whether a message ends with this encoded part.
 * @param {Uint8Array} part
 */
const isLast = (part) => (part[0] & LAST) !== 0;

/**
 * @param {Uint8Array} part
 * @returns {Part}
 */
const readPart = (part) => readParts(encodeParts([runHead(0, 0, 1), part])).runs[0].parts[0];

/**
 * The number of the request that these encoded parts are; 0 when they are none.
 * @param {readonly Uint8Array[]} parts
 */
function requestNumber(parts) {
  const first = readPart(parts[0]);
  return partRole(first) === Role.REQUEST ? first.number : 0;
}

/**
 * What `encodeMessage` made these of.
 * @param {readonly Uint8Array[]} parts
 * @returns {[KindValue, RoleValue, Uint8Array]}
 */
function decodeMessage(parts) {
  const read = parts.map(readPart);
  return [partKind(read[0]), partRole(read[0]), concatenated(read.map((part) => part.payload))];
}

/**
 * What stands before a run of `count` encoded parts.
 * @param {number} channel
 * @param {number} seq
 * @param {number} count
 */
function runHead(channel, seq, count) {
  const out = new Uint8Array(countSize(channel) + countSize(seq) + countSize(count));
  putCount(out, putCount(out, putCount(out, 0, channel), seq), count);
  return out;
}

const PARTS_HEAD = Uint8Array.of(F_PARTS);

/**
 * A frame of runs: heads by `runHead`, each followed by its parts.
 * @param {readonly Uint8Array[]} pieces
 */
function encodeParts(pieces) {
  return concatenated([PARTS_HEAD, ...pieces]);
}

/**
 * @param {number[]} bytes what it begins with
 * @param {readonly (number | string)[]} fields whole numbers, and names of channels
 */
function frameOf(bytes, fields) {
  for (const field of fields) {
    if (typeof field === "string") {
      const name = utf8(field);
      bytes.push(name.length, ...name);
      continue;
    }
    let value = field;
    for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) | 0x80);
    bytes.push(value);
  }
  return new Uint8Array(bytes);
}

/** @param {readonly Limit[]} limits */
function limitFields(limits) {
  return [limits.length, ...limits.flatMap(({ channel, next, limit }) => [channel, next, limit])];
}

/**
 * The bytes of any frame but `Parts`.
 * @param {Exclude<Frame, Parts>} frame
 * @returns {Uint8Array}
 */
function encodeFrame(frame) {
  switch (frame.kind) {
    case "Resume": {
      const { round, maxMessage, maxChannels, window, limits } = frame;
      return frameOf(
        [F_RESUME, frame.ask ? ASKS : 0],
        [round, maxMessage, maxChannels, window, ...limitFields(limits)],
      );
    }
    case "Start": {
      const channels = frame.channels.flatMap(({ channel, seq, offset, name }) => [channel, seq, offset, name]);
      return frameOf([F_START], [frame.round, frame.channels.length, ...channels]);
    }
    case "Open":
      return frameOf([F_OPEN], [frame.channel, frame.name]);
    case "Ack":
      return frameOf([F_ACK], limitFields(frame.limits));
    case "Ping":
      return frameOf([F_PING], [frame.nonce]);
    case "Pong":
      return frameOf([F_PONG], [frame.nonce]);
    case "Bye":
      return frameOf([F_BYE], []);
  }
}

/**
 * @param {string} text
 * @param {string} field
 */
const badFrame = (text, field) => new ProtocolError(`malformed frame: ${text}`, { code: "bad_frame", field });

/** @param {number} flags */
const shownFlags = (flags) => `0x${flags.toString(16).padStart(2, "0")}`;

/** Reads the fields of one frame, in order. */
class FrameReader {
  /**
   * @param {Uint8Array} data
   * @param {number} at
   */
  constructor(data, at) {
    this.data = data;
    this.at = at;
  }

  /** @param {string} field */
  byte(field) {
    if (this.at >= this.data.length) throw badFrame(`it ends before ${field}`, field);
    return this.data[this.at++];
  }

  /**
   * A whole number.
   * @param {string} field
   */
  count(field) {
    const { data } = this;
    let value = 0;
    let scale = 1;
    // Eight bytes may stand for more than a number holds exactly, but then it is far above the limit.
    for (let left = 8; left; left--) {
      if (this.at >= data.length) throw badFrame(`it ends within ${field}`, field);
      const byte = data[this.at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) {
        if (value > MAX_COUNT) break;
        if (!byte && scale > 1) throw badFrame(`${field} is written with more bytes than it needs`, field);
        return value;
      }
      scale *= 0x80;
    }
    throw badFrame(`${field} is above ${MAX_COUNT}`, field);
  }

  /**
   * So many items follow, each of which has two bytes at least.
   * @template T
   * @param {string} field
   * @param {() => T} read
   * @returns {T[]}
   */
  items(field, read) {
    const count = this.count(field);
    if (count * 2 > this.data.length - this.at) {
      throw badFrame(`${count} items can't be in the bytes that are left`, field);
    }
    return Array.from({ length: count }, read);
  }

  /** @returns {Limit[]} */
  limits() {
    return this.items("limits", () => ({
      kind: "Limit",
      channel: this.count("channel"),
      next: this.count("next"),
      limit: this.count("limit"),
    }));
  }

  name() {
    const size = this.byte("name");
    const data = this.data.subarray(this.at, this.at + size);
    if (data.length < size || !size) {
      throw badFrame(`a name of ${size} bytes, of which ${data.length} are there`, "name");
    }
    this.at += size;
    try {
      return utf8Decoder.decode(data);
    } catch {
      throw badFrame("the name of a channel is not UTF-8", "name");
    }
  }

  end() {
    if (this.at !== this.data.length) throw badFrame(`${this.data.length - this.at} bytes follow its end`, "size");
  }
}

/** A payload that is not copied keeps all of its frame in memory: so many times its charge at most. */
const MAX_HELD = 8;

/**
 * @param {Uint8Array} data
 * @returns {Parts}
 */
function readParts(data) {
  const reader = new FrameReader(data, 1);
  const end = data.length;
  const held = data.buffer.byteLength;
  /** @type {Run[]} */
  const runs = [];
  while (reader.at < end) {
    const channel = reader.count("channel");
    const seq = reader.count("seq");
    const count = reader.count("count");
    const room = end - reader.at;
    if (!count || count * 2 > room) {
      throw badFrame(`${count} parts can't be in the ${room} bytes that are left`, "count");
    }
    /** @type {Part[]} */
    const parts = [];
    for (let left = count; left; left--) {
      if (reader.at + 2 > end) throw badFrame("it ends within a part", "part");
      const flags = data[reader.at++];
      let total = 0;
      let number = 0;
      if (flags & FIRST) {
        if (!(flags & LAST)) total = reader.count("total");
        if ((flags >> ROLE_SHIFT) & 3) {
          number = reader.count("number");
          if (!number) throw badFrame("requests are numbered from 1", "number");
          if ((flags & 0x30) === 0x30 && (flags & 0x0c) !== 0x04) throw badFrame("an error that is no text", "flags");
        }
      } else if (flags & ~LAST) throw badFrame(`flags ${shownFlags(flags)} of a part that is not the first`, "flags");
      const size = reader.count("length");
      const { at } = reader;
      if (flags & 0xc0 || (flags & 0x0c) === 0x0c) throw badFrame(`unknown flags ${shownFlags(flags)}`, "flags");
      if (at + size > end || size > MAX_PART) {
        throw badFrame(`a part of ${size} bytes; ${end - at} are there`, "length");
      }
      if (!(flags & LAST)) {
        if (size < MIN_PART) throw badFrame(`a part of ${size} bytes that is not the last`, "length");
        if (flags & FIRST && total <= size) {
          throw badFrame(`a part of ${size} bytes begins a message of ${total}`, "total");
        }
      }
      reader.at = at + size;
      let payload = data.subarray(at, reader.at);
      if ((size + OVERHEAD) * MAX_HELD < held) {
        const copy = allocate(size);
        put(copy, 0, payload);
        payload = copy;
      }
      parts.push({ kind: "Part", flags, total, number, payload });
    }
    runs.push({ kind: "Run", channel, seq, parts });
  }
  if (!runs.length) throw badFrame("it has no parts", "size");
  return { kind: "Parts", runs };
}

/**
 * One frame. Throws `ProtocolError` and nothing else.
 * @param {Uint8Array} data
 * @returns {Frame}
 */
function decodeFrame(data) {
  const size = data.length;
  if (!size || size > MAX_FRAME) throw badFrame(`it has ${size} bytes, the limits are 1 and ${MAX_FRAME}`, "size");
  const first = data[0];
  if (first === F_PARTS) return readParts(data);
  const reader = new FrameReader(data, 1);
  /** @type {Frame} */
  let frame;
  if (first === F_RESUME) {
    const flags = reader.byte("flags");
    if (flags & ~ASKS) throw badFrame(`unknown flags ${shownFlags(flags)}`, "flags");
    frame = {
      kind: "Resume",
      round: reader.count("round"),
      ask: flags !== 0,
      maxMessage: reader.count("max_message"),
      maxChannels: reader.count("max_channels"),
      window: reader.count("window"),
      limits: reader.limits(),
    };
  } else if (first === F_START) {
    frame = {
      kind: "Start",
      round: reader.count("round"),
      channels: reader.items("channels", () => ({
        kind: /** @type {const} */ ("Channel"),
        channel: reader.count("channel"),
        seq: reader.count("seq"),
        offset: reader.count("offset"),
        name: reader.name(),
      })),
    };
  } else if (first === F_OPEN) frame = { kind: "Open", channel: reader.count("channel"), name: reader.name() };
  else if (first === F_ACK) frame = { kind: "Ack", limits: reader.limits() };
  else if (first === F_PING) frame = { kind: "Ping", nonce: reader.count("nonce") };
  else if (first === F_PONG) frame = { kind: "Pong", nonce: reader.count("nonce") };
  else if (first === F_BYE) frame = { kind: "Bye" };
  else {
    const version = first >> 4;
    throw version === FRAME_VERSION
      ? badFrame(`unknown type ${first & 0x0f}`, "type")
      : badFrame(`version ${version}, this side speaks ${FRAME_VERSION}`, "version");
  }
  reader.end();
  return frame;
}

// --- the signalling schema -------------------------------------------------------------------------
//
// Unknown fields are ignored; of a field given twice the last counts. Everything else that does not
// fit throws `ProtocolError`, which names the field.

const VERSION = 1;
/** Bytes of JSON that a member's metadata may have. */
const MAX_METADATA = 4096;
/** Bytes of a join or an update. All that one may say fits in, however it is escaped. */
const MAX_MEMBER = 40 * 1024;
/** Characters of a token that a join may carry. */
const MAX_JOIN_TOKEN = 4096;
/** Characters that a text for people may have. */
const MAX_TEXT = 1024;
/** Characters that a session description may have. */
const MAX_SDP = 64 * 1024;
/** ICE candidates that one message may carry. */
const MAX_CANDIDATES = 100;
/** Links that one report may tell about. */
const MAX_REPORTS = 100;
/** Bytes of UTF-8 that a reason in a report may have. */
const MAX_REASON = 200;
/** Arrays and objects inside each other that a client's message may have. */
const MAX_DEPTH = 32;

/** @typedef {{[key: string]: unknown}} Metadata */
/** @typedef {"reject" | "takeover" | "rename"} OnConflict */
/**
 * Ask for a seat, or for the seat one had. The first message on a socket.
 * @typedef {{
 *   kind: "Join", version: number, room: string, peerId: string, incarnation: string,
 *   name: string | null, metadata: Metadata, onConflict: OnConflict, token: string | null,
 *   session: string | null, received: number, attempt: number, joinToken: string | null,
 * }} Join
 */
/**
 * Forward `body`, JSON, to a member of the same room. Counted.
 * @typedef {{kind: "SignalOut", to: string, toIncarnation: string, epoch: number, body: string}} SignalOut
 */
/**
 * Change the display name or the metadata; what is null stays as it is. Counted.
 * @typedef {{kind: "Update", name: string | null, metadata: Metadata | null}} Update
 */
/**
 * Give the seat up.
 * @typedef {{kind: "Leave"}} Leave
 */
/**
 * How a link stands, as one of its ends sees it. A figure that was not measured is null.
 * @typedef {{
 *   kind: "LinkReport", peerId: string, incarnation: string,
 *   state: "new" | "connecting" | "connected" | "disconnected" | "failed" | "closed", iceState: string,
 *   path: "direct" | "turn" | "relay" | null, rtt: number | null, reason: string, failure: string,
 *   restarts: number, attempts: number, successes: number, failures: number,
 *   connectTime: number | null, fallbacks: number, messages: number, bytesSent: number,
 *   bytesReceived: number,
 * }} LinkReport
 */
/**
 * How these links stand now; of others what was last said holds. No incarnation is told about twice.
 * @typedef {{kind: "Report", links: LinkReport[]}} Report
 */
/**
 * Are you there? The answer is a `Pong`. For who can't send WebSocket pings.
 * @typedef {{kind: "Ping"}} Ping
 */
/**
 * So many counted messages have arrived here in all.
 * @typedef {{kind: "Ack", received: number}} Ack
 */
/**
 * Somebody who has a seat in the room.
 * @typedef {{
 *   kind: "Member", peerId: string, incarnation: string, name: string | null, metadata: Metadata,
 * }} Member
 */
/**
 * A STUN or TURN server (W3C WebRTC, RTCIceServer).
 * @typedef {{
 *   kind: "IceServerInfo", urls: string[], username: string | null, credential: string | null,
 * }} IceServerInfo
 */
/**
 * The servers to use from now on, in place of those that an earlier one named.
 * @typedef {{kind: "IceServers", servers: IceServerInfo[], expiresIn: number | null}} IceServers
 */
/**
 * The seat is yours. `resumed`: it is the one you had, and nothing was missed.
 * @typedef {{
 *   kind: "Welcome", version: number, room: string, peerId: string, incarnation: string, token: string,
 *   seatTimeout: number, session: string | null, resumed: boolean, received: number, members: Member[],
 *   forwardWindow: number, reportInterval: number, iceServers: IceServers | null, name: string | null,
 * }} Welcome
 */
/**
 * Somebody has a seat now. Known id, other incarnation: the earlier one is gone. Counted.
 * @typedef {{kind: "MemberJoined", member: Member}} MemberJoined
 */
/**
 * A seat was given up (`left`) or ran out (`timeout`). Counted.
 * @typedef {{kind: "MemberLeft", peerId: string, incarnation: string, reason: string}} MemberLeft
 */
/**
 * A member changed its name or metadata; both are given as they are now. Counted.
 * @typedef {{
 *   kind: "MemberUpdated", peerId: string, incarnation: string, name: string | null,
 *   metadata: Metadata,
 * }} MemberUpdated
 */
/**
 * A forwarded signal. `sender` (`from` on the wire) and `incarnation` are the relay's word. Counted.
 * @typedef {{
 *   kind: "SignalIn", sender: string, incarnation: string, toIncarnation: string, epoch: number,
 *   body: string,
 * }} SignalIn
 */
/**
 * The relay did not do what was asked. Counted when the client has a seat. `message` is the number
 * of the counted message that is meant, 0 when it was none; `to` the addressee of a signal.
 * @typedef {{
 *   kind: "Refused", code: string, text: string, field: string | null, message: number,
 *   to: string | null, retryAfter: number | null,
 * }} Refused
 */
/**
 * So many more bytes of data for this member are no longer on their way.
 * @typedef {{kind: "Forwarded", to: string, size: number}} Forwarded
 */
/**
 * The operator of the relay has something to say to this room. Counted.
 * @typedef {{kind: "Notice", text: string}} Notice
 */
/**
 * The operator asks for an ICE restart with this member, or with all. Counted.
 * @typedef {{kind: "RestartIce", peerId: string | null}} RestartIce
 */
/**
 * The relay closes this socket. `replaced`, `removed`: do not come back. `shutdown`: come back after
 * `retryAfter` seconds.
 * @typedef {{kind: "Goodbye", reason: string, retryAfter: number | null}} Goodbye
 */
/**
 * I am: to each `Ping`, in its turn among all that is said.
 * @typedef {{kind: "Pong"}} Pong
 */
/**
 * A session description (RFC 8829) that begins an epoch, or with a generation above 0 an ICE restart
 * within it.
 * @typedef {{kind: "Offer", sdp: string, generation: number}} Offer
 */
/**
 * The session description that answers the offer of the same epoch and generation.
 * @typedef {{kind: "Answer", sdp: string, generation: number}} Answer
 */
/**
 * One candidate (RFC 8839, section 5.1), as W3C WebRTC's RTCIceCandidateInit writes it.
 * @typedef {{
 *   kind: "IceCandidate", candidate: string, sdpMid: string | null, sdpMLineIndex: number | null,
 * }} IceCandidate
 */
/**
 * More candidates for a generation of this epoch; `end` when there will be no others.
 * @typedef {{kind: "Candidates", candidates: IceCandidate[], end: boolean, generation: number}} Candidates
 */
/**
 * From the side that waits to the side that dials: this epoch is dead here, dial again.
 * @typedef {{kind: "Dial", reason: string}} Dial
 */
/**
 * What you sent was for an incarnation or an epoch that is over; these are the current ones.
 * @typedef {{kind: "Stale", incarnation: string, epoch: number}} Stale
 */

/** @typedef {Join | SignalOut | Update | Leave | Ack | Report | Ping} ClientMessage */
/** @typedef {Welcome | MemberJoined | MemberLeft | MemberUpdated | SignalIn | Refused | IceServers | Forwarded | Notice | RestartIce | Goodbye | Pong | Ack} RelayMessage */
/** @typedef {Offer | Answer | Candidates | Dial | Stale} LinkMessage */

/**
 * What a value must be. `shown` is what errors call it. Lengths of strings are in code points.
 * @typedef {{is: "string", max: number, min: number, pattern: RegExp | null, words: string}
 *   | {is: "int" | "float", max: number}
 *   | {is: "bool" | "object" | "raw"}
 *   | {is: "literal", values: readonly string[]}
 *   | {is: "array", of: SchemaType, min: number, max: number}
 *   | {is: "struct", struct: Struct}
 *   | {is: "union", tags: ReadonlyMap<string, Struct>}} SchemaShape
 * @typedef {SchemaShape & {shown: string, nullable?: boolean}} SchemaType
 * @typedef {{name: string, wire: string, type: SchemaType, fallback: unknown}} SchemaField
 * @typedef {{
 *   kind: string, tag: string | null, isArray: boolean, fields: readonly SchemaField[],
 *   places: ReadonlyMap<string, number>, required: number,
 * }} Struct
 * @typedef {SchemaType | readonly [SchemaType, unknown]} FieldType a type, or that and a default
 */

const REQUIRED = Symbol("required");

const SCHEMA = (() => {
  // No control characters, no line or paragraph separators, nothing that turns the direction of
  // text, no surrounding white space: a peer id or a name goes into logs and terminals as it is.
  const bad = String.raw`\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069`;
  // What Python takes for white space, as far as it isn't among those.
  const edge = `[^ \xa0\u1680\u2000-\u200a\u202f\u205f\u3000${bad}]`;

  /** @type {(words: string, pattern: string | null, max?: number, min?: number) => SchemaType} */
  const text = (words, pattern, max = Infinity, min = 0) => {
    return {
      is: "string",
      shown: "str",
      max,
      min,
      words,
      pattern: pattern === null ? null : new RegExp(`^(?:${pattern})$`, "u"),
    };
  };
  /** @type {(max: number) => SchemaType} */
  const whole = (max) => ({ is: "int", shown: "int", max });
  /** @type {(max: number) => SchemaType} */
  const real = (max) => ({ is: "float", shown: "float", max });
  /** @type {(...values: string[]) => SchemaType} */
  const oneOf = (...values) => ({ is: "literal", shown: "str", values });
  /** @type {(of: SchemaType, max?: number, min?: number) => SchemaType} */
  const list = (of, max = Infinity, min = 0) => ({ is: "array", shown: "array", of, max, min });
  /** @type {(struct: Struct) => SchemaType} */
  const one = (struct) => ({ is: "struct", shown: struct.isArray ? "array" : "object", struct });
  /** @type {(...structs: Struct[]) => SchemaType} */
  const union = (...structs) => {
    return { is: "union", shown: "object", tags: new Map(structs.map((each) => [each.tag ?? "", each])) };
  };
  /** @type {(type: SchemaType) => [SchemaType, null]} */
  const orNull = (type) => [{ ...type, shown: `${type.shown} | null`, nullable: true }, null];
  const snake = (/** @type {string} */ name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  /** @type {(kind: string, tag: string | null, fields: {[name: string]: FieldType}, options?: {isArray?: boolean, wire?: (name: string) => string}) => Struct} */
  const struct = (kind, tag, described, { isArray = false, wire = snake } = {}) => {
    const fields = Object.entries(described).map(([name, type]) => {
      const [of, fallback] = type instanceof Array ? type : [/** @type {SchemaType} */ (type), REQUIRED];
      return { name, wire: wire(name), type: of, fallback };
    });
    const places = new Map(fields.map((each, place) => [each.wire, place]));
    return { kind, tag, isArray, fields, places, required: fields.filter((each) => each.fallback === REQUIRED).length };
  };

  const label = text(
    "without control characters and without white space around it",
    `${edge}(?:[^${bad}]*${edge})?`,
    128,
    1,
  );
  const incarnation = text("of 8 to 64 letters, digits, - and _", "[A-Za-z0-9_\\-]{8,64}");
  const token = text("of 16 to 128 letters, digits, - and _", "[A-Za-z0-9_\\-]{16,128}");
  const joinToken = text(
    `of 1 to ${MAX_JOIN_TOKEN} printable ASCII characters without spaces`,
    `[!-~]{1,${MAX_JOIN_TOKEN}}`,
  );
  const code = text("of 1 to 64 lower-case letters and _", "[a-z_]{1,64}");
  const prose = (max = MAX_TEXT) => text("without control characters", `[^${bad}]*`, max);
  const url = text("that begins with stun:, turn: or turns:", `(?:stun|turns?):${edge}+`, 256);
  const plain = (max = Infinity) => text("", null, max);
  const version = whole(2 ** 31 - 1);
  const epoch = version;
  const received = whole(2 ** 53);
  /** @type {FieldType} */
  const count = [received, 0];
  const seconds = real(86400);
  /** @type {FieldType} */
  const no = [{ is: "bool", shown: "bool" }, false];
  /** @type {SchemaType} */
  const object = { is: "object", shown: "object" };
  /** @type {SchemaType} */
  const body = { is: "raw", shown: "any" };

  const name = orNull(label);
  const secret = orNull(plain(512));
  /** @type {FieldType} */
  const generation = [epoch, 0];
  /** @type {FieldType} */
  const metadata = [object, {}];

  const join = struct("Join", "join", {
    version,
    room: label,
    peerId: label,
    incarnation,
    name,
    metadata,
    onConflict: [oneOf("reject", "takeover", "rename"), "reject"],
    token: orNull(token),
    session: orNull(token),
    received: count,
    attempt: count,
    joinToken: orNull(joinToken),
  });
  const signalOut = struct("SignalOut", "signal", { to: label, toIncarnation: incarnation, epoch, body });
  const update = struct("Update", "update", { name, metadata: orNull(object) });
  const leave = struct("Leave", "leave", {});
  const reason = prose(MAX_REASON);
  const linkReport = struct(
    "LinkReport",
    null,
    {
      peerId: label,
      incarnation,
      state: oneOf("new", "connecting", "connected", "disconnected", "failed", "closed"),
      iceState: code,
      path: orNull(oneOf("direct", "turn", "relay")),
      rtt: orNull(seconds),
      reason: [reason, ""],
      failure: [reason, ""],
      restarts: count,
      attempts: count,
      successes: count,
      failures: count,
      connectTime: orNull(real(Infinity)),
      fallbacks: count,
      messages: count,
      bytesSent: count,
      bytesReceived: count,
    },
    { isArray: true },
  );
  const report = struct("Report", "report", { links: list(one(linkReport), MAX_REPORTS) });

  const ping = struct("Ping", "ping", {});
  const ack = struct("Ack", "ack", { received });

  const member = struct("Member", null, { peerId: label, incarnation, name, metadata });
  const iceServerInfo = struct("IceServerInfo", null, { urls: list(url, 8, 1), username: secret, credential: secret });
  const iceServers = struct("IceServers", "ice_servers", {
    servers: list(one(iceServerInfo), 16),
    expiresIn: orNull(seconds),
  });
  const welcome = struct("Welcome", "welcome", {
    version,
    room: label,
    peerId: label,
    incarnation,
    token,
    seatTimeout: seconds,
    session: orNull(token),
    resumed: no,
    received: count,
    members: [list(one(member)), []],
    forwardWindow: count,
    reportInterval: [seconds, 0],
    iceServers: orNull(one(iceServers)),
    name,
  });
  const memberJoined = struct("MemberJoined", "joined", { member: one(member) });
  const memberLeft = struct("MemberLeft", "left", { peerId: label, incarnation, reason: code });
  const memberUpdated = struct("MemberUpdated", "updated", { peerId: label, incarnation, name, metadata });
  const signalIn = struct(
    "SignalIn",
    "signal",
    { sender: label, incarnation, toIncarnation: incarnation, epoch, body },
    { wire: (name) => (name === "sender" ? "from" : snake(name)) },
  );
  const refused = struct("Refused", "refused", {
    code,
    text: prose(),
    field: orNull(prose()),
    message: count,
    to: orNull(label),
    retryAfter: orNull(seconds),
  });
  const forwarded = struct("Forwarded", "forwarded", { to: label, size: received });
  const notice = struct("Notice", "notice", { text: prose() });
  const restartIce = struct("RestartIce", "restart_ice", { peerId: orNull(label) });
  const goodbye = struct("Goodbye", "goodbye", { reason: code, retryAfter: orNull(seconds) });
  const pong = struct("Pong", "pong", {});

  const offer = struct("Offer", "offer", { sdp: plain(), generation });
  const answer = struct("Answer", "answer", { sdp: plain(), generation });
  const iceCandidate = struct(
    "IceCandidate",
    null,
    { candidate: plain(1024), sdpMid: orNull(plain(64)), sdpMLineIndex: orNull(whole(255)) },
    { wire: (name) => name },
  );
  const candidates = struct("Candidates", "candidates", {
    candidates: [list(one(iceCandidate), MAX_CANDIDATES), []],
    end: no,
    generation,
  });
  const dial = struct("Dial", "dial", { reason: [prose(), ""] });
  const stale = struct("Stale", "stale", { incarnation, epoch });

  const kindOf = one(struct("Kind", null, { type: [plain(), ""] }));
  const client = [join, signalOut, update, leave, ack, report, ping];
  const relay = [
    welcome,
    memberJoined,
    memberLeft,
    memberUpdated,
    signalIn,
    refused,
    iceServers,
    forwarded,
    notice,
    restartIce,
    goodbye,
    pong,
  ];
  const link = [offer, answer, candidates, dial, stale];
  return {
    client: union(...client),
    relay: union(...relay, ack),
    link: union(...link),
    kindOf,
    label,
    incarnation,
    byKind: new Map([...client, ...relay, ...link].map((each) => [each.kind, each])),
  };
})();

/**
 * The text of one message: JSON without white space.
 * @param {ClientMessage | RelayMessage | LinkMessage} message
 * @returns {string}
 */
function encode(message) {
  const text = JSON.stringify(wireForm(/** @type {Struct} */ (SCHEMA.byKind.get(message.kind)), message));
  // A body is JSON already. It is the last of a signal's fields.
  return "body" in message ? `${text.slice(0, -1)},"body":${message.body}}` : text;
}

/**
 * @param {Struct} of
 * @param {{[name: string]: any}} value
 * @returns {unknown}
 */
function wireForm(of, value) {
  /** @type {{[wire: string]: unknown}} */
  const out = of.tag === null ? {} : { type: of.tag };
  for (const { name, wire, type } of of.fields) {
    const given = value[name];
    if (type.is === "struct" && given) out[wire] = wireForm(type.struct, given);
    else if (type.is === "array" && type.of.is === "struct") {
      const item = type.of.struct;
      out[wire] = given.map((/** @type {object} */ each) => wireForm(item, each));
    } else if (type.is !== "raw") out[wire] = given;
  }
  return of.isArray ? Object.values(out) : out;
}

// --- reading JSON ----------------------------------------------------------------------------------

const CH_SPACE = 0x20;
const CH_QUOTE = 0x22;
const CH_PLUS = 0x2b;
const CH_COMMA = 0x2c;
const CH_MINUS = 0x2d;
const CH_DOT = 0x2e;
const CH_ZERO = 0x30;
const CH_NINE = 0x39;
const CH_COLON = 0x3a;
const CH_E = 0x45;
const CH_BACKSLASH = 0x5c;
const CH_OPEN_ARRAY = 0x5b;
const CH_CLOSE_ARRAY = 0x5d;
const CH_OPEN_OBJECT = 0x7b;
const CH_CLOSE_OBJECT = 0x7d;
const CH_SMALL_E = 0x65;
const CH_N = 0x6e;
const CH_T = 0x74;
const CH_F = 0x66;

/** Characters of a text that errors show. */
const SHOWN = 200;
/** Arrays and objects inside each other that can be read, whatever they are: about what Python can. */
const READABLE_DEPTH = 900;
/** Digits that a whole number may have. */
const MAX_DIGITS = 4300;

/**
 * Makes the errors of who said something: it is no JSON; what is at a path is wrong; it is nested too
 * deep.
 * @typedef {{
 *   notJson: (said: string) => ProtocolError, wrong: (said: string, path: string) => ProtocolError,
 *   tooDeep: () => ProtocolError,
 * }} JsonErrors
 */

/** @type {(who: string) => JsonErrors} */
const errorsOf = (who) => ({
  notJson: (said) => new ProtocolError(`message from ${who} is not JSON: ${said}`, { code: "not_json" }),
  wrong: (said, field) => {
    // A value that is echoed is the sender's; this text goes into logs and back over the wire.
    return new ProtocolError(`malformed message from ${who}: ${printable(said, SHOWN)} (field ${field})`, { field });
  },
  tooDeep: () => {
    return new ProtocolError(`message from ${who} is nested deeper than ${MAX_DEPTH} arrays and objects`, {
      code: "too_deep",
    });
  },
});
const CLIENT_ERRORS = errorsOf("the client");
const RELAY_ERRORS = errorsOf("the relay");
const PEER_ERRORS = errorsOf("the peer");
/** @type {JsonErrors} */
const VALUE_ERRORS = {
  notJson: (said) => badValue(Kind.JSON, said),
  wrong: (said) => badValue(Kind.JSON, said),
  tooDeep: () => {
    const text = `a JSON value is nested deeper than ${MAX_VALUE_DEPTH} arrays and objects`;
    return new ProtocolError(text, { code: "too_deep", field: "payload" });
  },
};

/**
 * Reads JSON (RFC 8259) as what a type says, in one pass, and refuses what Python's decoder
 * (msgspec) refuses, with its words: the first thing that is wrong counts. JSON.parse can't do that:
 * to it 1.0 is 1, and half of a surrogate pair is text.
 */
class JsonReader {
  #text;
  #errors;
  #at = 0;
  #depth = 0;
  /** Where it is: names of fields, numbers of items, and -1 for any key. @type {(string | number)[]} */
  #path = [];
  /** Whether what is read is going to be used. If not, its numbers may be out of range. */
  #isWanted = true;
  /** How many arrays and objects there were inside each other. */
  deepest = 0;
  /** Whether there was a number that may be out of range: others have less digits, or a lesser exponent. */
  hasLongNumber = false;

  /**
   * @param {string} text
   * @param {JsonErrors} errors
   */
  constructor(text, errors) {
    this.#text = text;
    this.#errors = errors;
  }

  /** Nothing may follow. */
  finish() {
    if (!Number.isNaN(this.#peekOrEnd())) throw this.#malformed("trailing characters", 1);
  }

  #truncated() {
    return this.#errors.notJson("Input data was truncated");
  }

  /**
   * @param {string} said
   * @param {number} [further] bytes that were taken of what comes here
   */
  #malformed(said, further = 0) {
    const byte = utf8Length(this.#text.slice(0, this.#at)) + further;
    return this.#errors.notJson(`JSON is malformed: ${said} (byte ${byte})`);
  }

  /** @param {string} said */
  #wrong(said) {
    const steps = this.#path.map((step) => (typeof step === "string" ? `.${step}` : `[${step < 0 ? "..." : step}]`));
    return this.#errors.wrong(said, `$${steps.join("")}`);
  }

  /**
   * @param {SchemaType} type
   * @param {string} got
   */
  #mismatch(type, got) {
    return this.#wrong(`Expected \`${type.shown}\`, got \`${got}\``);
  }

  /** The next character that is not white space, NaN at the end. It is not taken. */
  #peekOrEnd() {
    let c = this.#text.charCodeAt(this.#at);
    while (c === CH_SPACE || c === 0x0a || c === 0x0d || c === 0x09) c = this.#text.charCodeAt(++this.#at);
    return c;
  }

  /** The next character that is not white space. It is not taken. */
  #peek() {
    const c = this.#peekOrEnd();
    if (Number.isNaN(c)) throw this.#truncated();
    return c;
  }

  /**
   * So many bytes must follow.
   * @param {number} size
   */
  #need(size) {
    const { length } = this.#text;
    if (length - this.#at < size && utf8Length(this.#text.slice(this.#at)) < size) throw this.#truncated();
  }

  /** Takes a bracket. */
  #enter() {
    this.#at++;
    if (++this.#depth > this.deepest && ++this.deepest > READABLE_DEPTH) throw this.#errors.tooDeep();
  }

  #leave() {
    this.#at++;
    this.#depth--;
  }

  /** @param {string} word */
  #word(word) {
    this.#need(word.length);
    if (!this.#text.startsWith(word, this.#at)) {
      throw this.#malformed("invalid character", this.#isWanted ? word.length : 1);
    }
    this.#at += word.length;
  }

  /** Passes over a string; returns whether there are escapes in it. */
  #skipString() {
    const text = this.#text;
    let isEscaped = false;
    for (let at = this.#at + 1; ;) {
      const c = text.charCodeAt(at);
      if (c === CH_QUOTE) {
        this.#at = at + 1;
        return isEscaped;
      }
      if (c >= CH_SPACE && c !== CH_BACKSLASH) {
        at++;
        continue;
      }
      this.#at = at;
      if (at >= text.length) throw this.#truncated();
      if (c !== CH_BACKSLASH) throw this.#malformed("invalid character");
      this.#skipEscape();
      isEscaped = true;
      at = this.#at;
    }
  }

  #skipEscape() {
    const c = this.#text.charAt(this.#at + 1);
    if (c === "") throw this.#truncated();
    this.#at++;
    if (c !== "u" && !'"\\/bfnrt'.includes(c)) {
      throw this.#isWanted
        ? this.#malformed("invalid escape character in string", 1)
        : this.#malformed("invalid escaped character");
    }
    this.#at++;
    if (c !== "u") return;
    const first = this.#escapedUnit();
    if (first < 0xd800 || first > 0xdfff) return;
    if (first > 0xdbff) throw this.#malformed("invalid utf-16 surrogate pair");
    this.#need(6);
    if (!this.#text.startsWith("\\u", this.#at)) {
      throw this.#malformed(`unexpected end of ${this.#isWanted ? "escaped utf-16 surrogate pair" : "hex escape"}`);
    }
    this.#at += 2;
    const second = this.#escapedUnit();
    if (second < 0xdc00 || second > 0xdfff) throw this.#malformed("invalid utf-16 surrogate pair");
  }

  /** The four digits of an escape. */
  #escapedUnit() {
    this.#need(4);
    let unit = 0;
    for (let left = 4; left; left--) {
      const digit = "0123456789abcdef".indexOf(this.#text.charAt(this.#at).toLowerCase());
      if (digit < 0) throw this.#malformed("invalid character in unicode escape", 1);
      this.#at++;
      unit = unit * 16 + digit;
    }
    return unit;
  }

  /** A string, which begins here. It does not hold on to the whole text. */
  #string() {
    const start = this.#at;
    this.#skipString();
    return /** @type {string} */ (JSON.parse(this.#text.slice(start, this.#at)));
  }

  /** The key of a field and its colon, which begin here. */
  #key() {
    const start = this.#at;
    const isEscaped = this.#skipString();
    const end = this.#at;
    this.#colon();
    return isEscaped
      ? /** @type {string} */ (JSON.parse(this.#text.slice(start, end)))
      : this.#text.slice(start + 1, end - 1);
  }

  #colon() {
    if (this.#peek() !== CH_COLON) throw this.#malformed("expected ':'");
    this.#at++;
  }

  /** Passes over digits, of which there must be one. */
  #skipDigits(otherwise = "invalid number") {
    const text = this.#text;
    let at = this.#at;
    for (let c = text.charCodeAt(at); c >= CH_ZERO && c <= CH_NINE;) c = text.charCodeAt(++at);
    const isNone = at === this.#at;
    this.#at = at;
    if (isNone) throw this.#malformed(otherwise);
    return text.charCodeAt(at);
  }

  /** Passes over a number; returns whether it has a fraction or an exponent. */
  #skipNumber() {
    const text = this.#text;
    const start = this.#at;
    let c = text.charCodeAt(start);
    let isFloat = false;
    if (c === CH_MINUS) {
      if (++this.#at === text.length && this.#isWanted) throw this.#malformed("invalid number");
      c = text.charCodeAt(this.#at);
    }
    if (c === CH_ZERO) {
      c = text.charCodeAt(++this.#at);
      if (c >= CH_ZERO && c <= CH_NINE) throw this.#malformed("invalid number");
    } else c = this.#skipDigits("invalid character");
    if (c === CH_DOT) {
      isFloat = true;
      this.#at++;
      c = this.#skipDigits();
    }
    if (c === CH_E || c === CH_SMALL_E) {
      isFloat = true;
      c = text.charCodeAt(++this.#at);
      if (c === CH_PLUS || c === CH_MINUS) this.#at++;
      const exponent = this.#at;
      this.#skipDigits();
      if (this.#at - exponent > 2) this.hasLongNumber = true;
    }
    if (this.#at - start > 200) this.hasLongNumber = true;
    return isFloat;
  }

  /**
   * A number, which begins here. Without a type any will do that is in range.
   * @param {SchemaType | null} type
   */
  #number(type) {
    const start = this.#at;
    let isFloat = this.#skipNumber();
    const digits = this.#text.slice(start, this.#at);
    const value = Number(digits);
    if (!isFloat && isBeyond64Bits(value, digits)) {
      // Where whole numbers are not expected, these are taken for others.
      if (type && type.is !== "int") isFloat = true;
      else if (digits.length > MAX_DIGITS) throw this.#wrong("Integer value out of range");
    }
    if (isFloat && !Number.isFinite(value)) throw this.#wrong("Number out of range");
    if (!type) return value;
    if (type.is === "int" && !isFloat) {
      if (value < 0) throw this.#wrong("Expected `int` >= 0");
      // What is rounded to the limit may have been above it.
      if (value > type.max || (value === type.max && BigInt(digits) > type.max)) {
        throw this.#wrong(`Expected \`int\` <= ${type.max}`);
      }
    } else if (type.is === "float") {
      if (value < 0) throw this.#wrong("Expected `float` >= 0.0");
      if (value > type.max) throw this.#wrong(`Expected \`float\` <= ${type.max}.0`);
    } else throw this.#mismatch(type, isFloat ? "float" : "int");
    return value;
  }

  /**
   * Passes over a value, whatever it is.
   * @param {boolean} [isWanted]
   */
  skip(isWanted = false) {
    this.#isWanted = isWanted;
    const path = this.#path;
    const outside = path.length;
    for (;;) {
      const c = this.#peek();
      if (c === CH_OPEN_ARRAY || c === CH_OPEN_OBJECT) {
        this.#enter();
        const next = this.#peek();
        if (next !== c + 2) {
          path.push(c === CH_OPEN_ARRAY ? 0 : -1);
          if (c === CH_OPEN_OBJECT) this.#skipKey(next);
          continue;
        }
        this.#leave();
      } else if (c === CH_QUOTE) this.#skipString();
      else if (c === CH_N) this.#word("null");
      else if (c === CH_T) this.#word("true");
      else if (c === CH_F) this.#word("false");
      else if (isWanted) this.#number(null);
      else this.#skipNumber();
      // A value ends here, and with it perhaps what it is in.
      while (path.length > outside && !this.#skipComma()) path.pop();
      if (path.length === outside) break;
    }
    this.#isWanted = true;
  }

  /** Passes over a comma, and the key behind it; or over the end of the array or object. */
  #skipComma() {
    const c = this.#peek();
    const last = this.#path.length - 1;
    const place = /** @type {number} */ (this.#path[last]);
    const isArray = place >= 0;
    if (c === (isArray ? CH_CLOSE_ARRAY : CH_CLOSE_OBJECT)) {
      this.#leave();
      return false;
    }
    if (c !== CH_COMMA) throw this.#malformed(`expected ',' or '${isArray ? "]" : "}"}'`);
    this.#at++;
    const next = this.#peek();
    if (!isArray) this.#skipKey(next);
    else if (next === CH_CLOSE_ARRAY) throw this.#malformed("trailing comma in array");
    else this.#path[last] = place + 1;
    return true;
  }

  /**
   * Passes over a key and its colon.
   * @param {number} c what it begins with
   */
  #skipKey(c) {
    if (c === CH_CLOSE_OBJECT) throw this.#malformed("trailing comma in object");
    if (c !== CH_QUOTE) throw this.#malformed(this.#isWanted ? "object keys must be strings" : "expected '\"'");
    this.#skipString();
    this.#colon();
  }

  /**
   * A value of this type.
   * @param {SchemaType} type
   * @returns {unknown}
   */
  value(type) {
    const c = this.#peek();
    if (type.is === "raw") return this.#raw();
    switch (c) {
      case CH_N:
        this.#word("null");
        if (type.nullable) return null;
        throw this.#mismatch(type, "null");
      case CH_T:
        this.#word("true");
        if (type.is === "bool") return true;
        throw this.#mismatch(type, "bool");
      case CH_F:
        this.#word("false");
        if (type.is === "bool") return false;
        throw this.#mismatch(type, "bool");
      case CH_OPEN_ARRAY:
        if (type.is === "array") return this.#array(type);
        if (type.is === "struct" && type.struct.isArray) return this.#structArray(type.struct);
        throw this.#mismatch(type, "array");
      case CH_OPEN_OBJECT:
        if (type.is === "object") return JSON.parse(this.#raw(true));
        if (type.is === "union") return this.#union(type.tags);
        if (type.is === "struct" && !type.struct.isArray) {
          this.#enter();
          return this.#struct(type.struct, true);
        }
        throw this.#mismatch(type, "object");
      case CH_QUOTE:
        return this.#textOf(type);
      default:
        return this.#number(type);
    }
  }

  /**
   * The JSON of a value, which begins here.
   * @param {boolean} [isWanted]
   */
  #raw(isWanted = false) {
    const start = this.#at;
    this.skip(isWanted);
    return this.#text.slice(start, this.#at);
  }

  /** @param {SchemaType} type */
  #textOf(type) {
    const text = this.#string();
    if (type.is === "literal") {
      if (!type.values.includes(text)) throw this.#wrong(`Invalid enum value ${repr(text)}`);
      return text;
    }
    if (type.is !== "string") throw this.#mismatch(type, "str");
    const misfit = misfitOf(type, text);
    if (misfit !== null) throw this.#wrong(`Expected \`str\` ${misfit}`);
    return text;
  }

  /**
   * Whether there is another item in an array or object. It is not taken.
   * @param {boolean} isFirst whether it would be the first
   * @param {number} close
   */
  #hasMore(isFirst, close) {
    let c = this.#peek();
    if (c === close) {
      this.#leave();
      return false;
    }
    const isArray = close === CH_CLOSE_ARRAY;
    if (!isFirst) {
      if (c !== CH_COMMA) throw this.#malformed(`expected ',' or '${isArray ? "]" : "}"}'`);
      this.#at++;
      c = this.#peek();
      if (c === close) throw this.#malformed(`trailing comma in ${isArray ? "array" : "object"}`);
    }
    if (!isArray && c !== CH_QUOTE) throw this.#malformed("object keys must be strings");
    return true;
  }

  /** @param {SchemaType & {is: "array"}} type */
  #array(type) {
    /** @type {unknown[]} */
    const out = [];
    const path = this.#path;
    this.#enter();
    path.push(0);
    while (this.#hasMore(!out.length, CH_CLOSE_ARRAY)) {
      path[path.length - 1] = out.length;
      out.push(this.value(type.of));
    }
    path.pop();
    if (out.length < type.min) throw this.#wrong(`Expected \`array\` of length >= ${type.min}`);
    if (out.length > type.max) throw this.#wrong(`Expected \`array\` of length <= ${type.max}`);
    return out;
  }

  /** @param {Struct} of */
  #structArray(of) {
    /** @type {unknown[]} */
    const values = [];
    const path = this.#path;
    this.#enter();
    path.push(0);
    for (let place = 0; this.#hasMore(!place, CH_CLOSE_ARRAY); place++) {
      path[path.length - 1] = place;
      if (place < of.fields.length) values.push(this.value(of.fields[place].type));
      else this.skip();
    }
    path.pop();
    if (values.length < of.required) {
      throw this.#wrong(`Expected \`array\` of at least length ${of.required}, got ${values.length}`);
    }
    return this.#filledIn(of, values);
  }

  /**
   * The fields of an object that was entered.
   * @param {Struct} of
   * @param {boolean} isFirst whether none of them was taken
   */
  #struct(of, isFirst) {
    const values = new Array(of.fields.length).fill(undefined);
    const path = this.#path;
    path.push("");
    for (; this.#hasMore(isFirst, CH_CLOSE_OBJECT); isFirst = false) {
      const key = this.#key();
      const place = of.places.get(key);
      if (place !== undefined) {
        path[path.length - 1] = key;
        values[place] = this.value(of.fields[place].type);
      } else if (of.tag !== null && key === "type") {
        const tag = this.#tag();
        if (tag !== of.tag) throw this.#wrong(`Invalid value '${tag}'`);
      } else this.skip();
    }
    path.pop();
    return this.#filledIn(of, values);
  }

  /**
   * @param {Struct} of
   * @param {readonly unknown[]} values what is undefined was absent
   */
  #filledIn(of, values) {
    /** @type {{[name: string]: unknown}} */
    const out = { kind: of.kind };
    of.fields.forEach(({ name, wire, fallback }, place) => {
      const value = values[place];
      if (value !== undefined) out[name] = value;
      else if (fallback === REQUIRED) {
        this.#path.push(wire);
        throw this.#wrong(`Object missing required field \`${wire}\``);
      } else out[name] = Array.isArray(fallback) ? [] : typeof fallback === "object" && fallback ? {} : fallback;
    });
    return out;
  }

  /** The text of a `type`. */
  #tag() {
    this.#path[this.#path.length - 1] = "type";
    if (this.#peek() === CH_QUOTE) return this.#string();
    this.skip();
    throw this.#wrong("Expected `str`");
  }

  /** @param {ReadonlyMap<string, Struct>} tags */
  #union(tags) {
    this.#enter();
    const start = this.#at;
    this.#path.push("type");
    for (let isFirst = true; this.#hasMore(isFirst, CH_CLOSE_OBJECT); isFirst = false) {
      if (this.#key() !== "type") {
        this.skip();
        continue;
      }
      const tag = this.#tag();
      const of = tags.get(tag);
      if (!of) throw this.#wrong(`Invalid value '${tag}'`);
      this.#path.pop();
      // What came before its type is read again, as what it is.
      if (!isFirst) this.#at = start;
      return this.#struct(of, !isFirst);
    }
    throw this.#wrong("Object missing required field `type`");
  }
}

/**
 * Whether a whole number is beyond those of 64 bits, with or without a sign.
 * @param {number} value
 * @param {string} digits
 */
function isBeyond64Bits(value, digits) {
  if (Math.abs(value) < 2 ** 63) return false;
  if (value < 0) return value < -(2 ** 63) || BigInt(digits) < -(2n ** 63n);
  return value > 2 ** 64 || (value === 2 ** 64 && BigInt(digits) >= 2n ** 64n);
}

/**
 * What a text would have to be, when it doesn't fit its type.
 * @param {SchemaType & {is: "string"}} type
 * @param {string} text
 */
function misfitOf({ min, max, pattern, words }, text) {
  if (text.length < min) return `of length >= ${min}`;
  // There are at least as many code units as code points.
  if (text.length > max && [...text].length > max) return `of length <= ${max}`;
  return pattern && !pattern.test(text) ? words : null;
}

/**
 * @param {SchemaType} type
 * @param {string | Uint8Array} data
 * @param {JsonErrors} errors
 * @returns {{message: any, deepest: number}}
 */
function readMessage(type, data, errors) {
  let text;
  try {
    text = typeof data === "string" ? data : utf8Decoder.decode(data);
  } catch {
    throw errors.notJson("it is not UTF-8");
  }
  if (LONE_SURROGATE.test(text)) throw errors.notJson("it is not valid Unicode");
  const reader = new JsonReader(text, errors);
  const message = reader.value(type);
  reader.finish();
  return { message, deepest: reader.deepest };
}

// --- signalling messages ---------------------------------------------------------------------------

/**
 * At most `limit` characters of `text`, each fit for a log, a terminal and the wire.
 * @param {string} text
 * @param {number} [limit]
 */
function printable(text, limit = MAX_TEXT) {
  const characters = Array.from(text.slice(0, 2 * limit)).slice(0, limit);
  return characters.map((each) => (isPrintable(each) ? each : "\ufffd")).join("");
}

/**
 * A reason as a report may have it: `printable`, and cut off at `MAX_REASON` bytes.
 * @param {string} text
 */
function brief(text) {
  let out = "";
  let room = MAX_REASON;
  for (const each of printable(text, MAX_REASON)) {
    room -= utf8Length(each);
    if (room < 0) break;
    out += each;
  }
  return out;
}

/**
 * What a client says to the relay. Throws `ProtocolError` and nothing else.
 * @param {string | Uint8Array} data
 * @returns {ClientMessage}
 */
function decodeClient(data) {
  const size = typeof data === "string" ? utf8Length(data) : data.length;
  if (size > MAX_MEMBER) {
    const { type } = readMessage(SCHEMA.kindOf, data, CLIENT_ERRORS).message;
    if (type === "join" || type === "update") {
      throw new ProtocolError(`this ${type} has ${size} bytes, the limit is ${MAX_MEMBER}`, { code: "too_large" });
    }
  }
  const { message, deepest } = readMessage(SCHEMA.client, data, CLIENT_ERRORS);
  if (deepest > MAX_DEPTH) throw CLIENT_ERRORS.tooDeep();
  switch (message.kind) {
    case "Join":
      if (message.version !== VERSION) {
        const text = `this relay speaks version ${VERSION} of the protocol, the client ${message.version}`;
        throw new ProtocolError(text, { code: "unsupported_version", field: "$.version" });
      }
      checkMetadata(message.metadata);
      break;
    case "Update":
      if (message.metadata !== null) checkMetadata(message.metadata);
      break;
    case "Report":
      checkLinks(message.links);
  }
  return message;
}

/**
 * What the types don't tell of a report.
 * @param {readonly LinkReport[]} links
 */
function checkLinks(links) {
  if (new Set(links.map(({ peerId, incarnation }) => `${incarnation} ${peerId}`)).size < links.length) {
    throw CLIENT_ERRORS.wrong("it tells twice about the same incarnation", "$.links");
  }
  links.forEach(({ reason, failure }, number) => {
    const place = utf8Length(reason) > MAX_REASON ? 6 : utf8Length(failure) > MAX_REASON ? 7 : null;
    if (place !== null) {
      throw CLIENT_ERRORS.wrong(
        `Expected \`str\` of at most ${MAX_REASON} bytes of UTF-8`,
        `$.links[${number}][${place}]`,
      );
    }
  });
}

/**
 * What the relay says to a client. Throws `ProtocolError` and nothing else.
 * @param {string | Uint8Array} data
 * @returns {RelayMessage}
 */
function decodeRelay(data) {
  return readMessage(SCHEMA.relay, data, RELAY_ERRORS).message;
}

/**
 * What one peer says to another inside a signal. Throws `ProtocolError` and nothing else.
 * @param {string | Uint8Array} body
 * @returns {LinkMessage}
 */
function decodeLink(body) {
  const { message } = readMessage(SCHEMA.link, body, PEER_ERRORS);
  if (message.kind === "Offer" || message.kind === "Answer") checkSdp(message.sdp);
  return message;
}

/**
 * Throws `ProtocolError` when `metadata` is larger than `MAX_METADATA` bytes of JSON.
 * @param {Metadata} metadata
 */
function checkMetadata(metadata) {
  const size = utf8Length(JSON.stringify(metadata));
  if (size > MAX_METADATA) {
    const text = `metadata has ${size} bytes of JSON, the limit is ${MAX_METADATA}`;
    throw new ProtocolError(text, { code: "too_large", field: "$.metadata" });
  }
}

const SDP_NEEDS = Object.entries({
  "m=application ": "a data channel section",
  "a=ice-ufrag:": "ICE credentials",
  "a=ice-pwd:": "ICE credentials",
  "a=fingerprint:": "a DTLS fingerprint",
});
const SDP_LINE = /^\p{L}=/u;
const LINE_END = /\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]/;

/**
 * The lines of a text, as Python tells them apart.
 * @param {string} text
 */
function linesOf(text) {
  const lines = text.split(LINE_END);
  if (lines[lines.length - 1] === "") lines.pop();
  return lines;
}

/**
 * Throws `ProtocolError` unless `sdp` could describe a data channel (RFC 8841).
 *
 * This is what can be told before anything is changed for it: the shape of each line (RFC 8866,
 * section 5), and that no part is missing without which there is no connection.
 * @param {string} sdp
 */
function checkSdp(sdp) {
  const refused = (/** @type {string} */ text, code = "bad_sdp") => new ProtocolError(text, { code, field: "$.sdp" });
  const size = sdp.length > MAX_SDP ? [...sdp].length : sdp.length;
  if (size > MAX_SDP) {
    throw refused(`the session description has ${size} characters, the limit is ${MAX_SDP}`, "too_large");
  }
  const lines = linesOf(sdp);
  const wrong = lines.findIndex((line) => !SDP_LINE.test(line));
  if (wrong >= 0) {
    const shown = repr([...lines[wrong]].slice(0, 40).join(""));
    throw refused(`line ${wrong + 1} of the session description is not of the form <type>=<value>: ${shown}`);
  }
  if (lines[0] !== "v=0") throw refused("the session description does not begin with v=0");
  const count = countCandidates(sdp);
  if (count > MAX_CANDIDATES) {
    throw refused(
      `the session description has ${count} candidates, the limit is ${MAX_CANDIDATES}`,
      "too_many_candidates",
    );
  }
  for (const [prefix, what] of SDP_NEEDS) {
    if (!lines.some((line) => line.startsWith(prefix))) {
      throw refused(`the session description lacks ${what} (no line ${repr(prefix)})`);
    }
  }
}

/**
 * How many candidates there are in a session description (RFC 8839, section 5.1).
 * @param {string} sdp
 */
function countCandidates(sdp) {
  return linesOf(sdp).filter((line) => line.startsWith("a=candidate:")).length;
}

// --- data frames through the relay -----------------------------------------------------------------
//
//     byte 0      1, which no JSON text begins with
//     2 bytes     length of the peer id, then the peer id in UTF-8
//     1 byte      length of the incarnation, then the incarnation in ASCII
//     the rest    the frame, 1 to `MAX_FORWARD` bytes
//
// To the relay the member is the addressee, from the relay the sender, as the relay knows it.

/** The first byte of a message that carries a frame. */
const MARK = 1;
/** Bytes that a forwarded frame may have. */
const MAX_FORWARD = 64 * 1024;
/** Bytes that may stand before the frame. */
const MAX_HEAD = 3 + 4 * 128 + 1 + 64;
/** Bytes beyond the window that a member may have on its way, for frames that must not wait. */
const FORWARD_SLACK = 64 * 1024;

/**
 * A data frame that another member sent through the service, which stamped the sender.
 * @typedef {{kind: "FrameIn", sender: string, incarnation: string, data: Uint8Array}} FrameIn
 */
/**
 * There is room again for data to this member: half of the window at least.
 * @typedef {{kind: "ForwardRoom", peerId: string}} ForwardRoom
 */

/**
 * The message that carries `frame` to this member, or from it.
 *
 * Throws `InvalidData` for an empty frame, `MessageTooLarge` for more than `MAX_FORWARD` bytes.
 * @param {string} peerId
 * @param {string} incarnation
 * @param {Uint8Array} frame
 */
function encodeForward(peerId, incarnation, frame) {
  if (!frame.length) throw new InvalidData("a frame has at least one byte");
  if (frame.length > MAX_FORWARD) {
    throw new MessageTooLarge(`the frame has ${frame.length} bytes, the limit is ${MAX_FORWARD}`);
  }
  const size = utf8Length(peerId);
  const out = new Uint8Array(3 + size + 1 + incarnation.length + frame.length);
  out[0] = MARK;
  out[1] = size >> 8;
  out[2] = size;
  utf8Encoder.encodeInto(peerId, out.subarray(3));
  out[3 + size] = incarnation.length;
  utf8Encoder.encodeInto(incarnation, out.subarray(4 + size));
  out.set(frame, 4 + size + incarnation.length);
  return out;
}

/**
 * A forwarded frame and whose it is. Throws `ProtocolError` and nothing else.
 *
 * The frame is a part of `data`, not a copy.
 * @param {Uint8Array} data
 * @returns {FrameIn}
 */
function decodeForward(data) {
  const refused = (/** @type {string} */ what) =>
    new ProtocolError(`a message with data ${what}`, { code: "bad_forward" });
  if (data[0] !== MARK) throw refused("must begin with the byte 1");
  const middle = 3 + ((data[1] << 8) | data[2]);
  if (data.length < 3 || middle >= data.length) throw refused("is cut off in the names before its frame");
  const start = middle + 1 + data[middle];
  const size = data.length - start;
  if (size < 1 || size > MAX_FORWARD) throw refused(`must have a frame of 1 to ${MAX_FORWARD} bytes behind its names`);
  const sender = nameIn(data.subarray(3, middle), SCHEMA.label);
  const incarnation = nameIn(data.subarray(middle + 1, start), SCHEMA.incarnation);
  if (sender === null || incarnation === null) throw refused("does not begin with a peer id and an incarnation");
  return { kind: "FrameIn", sender, incarnation, data: data.subarray(start) };
}

/**
 * @param {Uint8Array} data
 * @param {SchemaType} type
 */
function nameIn(data, type) {
  try {
    const text = utf8Decoder.decode(data);
    return type.is === "string" && misfitOf(type, text) === null ? text : null;
  } catch {
    return null;
  }
}

// --- timing.js -----------------------------------------------------------------------------------

// Named deadlines and backoff. Neither reads a clock: `now` is an argument, in seconds.

// A deadline that is served so much later than it was set for means that this page stood still:
// what came in meanwhile has not been read yet, so silence proves nothing.
const STALL = 0.25;

/**
 * A few named points in time, and which of them comes next.
 *
 * Meant for the handful of deadlines that one object has; `next` looks at each.
 * @template {string} [Name=string]
 */
class Deadlines {
  /** @type {Map<Name, number>} */
  #at = new Map();

  /**
   * Set or move the deadline `name`.
   * @param {Name} name
   * @param {number} at
   */
  set(name, at) {
    this.#at.set(name, at);
  }

  /**
   * Forget the deadline `name`; nothing happens when it is not set.
   * @param {Name} name
   */
  clear(name) {
    this.#at.delete(name);
  }

  /** Forget every deadline. */
  clearAll() {
    this.#at.clear();
  }

  /**
   * The time of `name`, or null when it is not set.
   * @param {Name} name
   */
  get(name) {
    return this.#at.get(name) ?? null;
  }

  /** The earliest time, or null when nothing is set. */
  next() {
    return this.#at.size ? Math.min(...this.#at.values()) : null;
  }

  /**
   * Take out and return what is due, earliest first, each with the time it was set for.
   * @param {number} now
   * @returns {[name: Name, at: number][]}
   */
  due(now) {
    const due = [...this.#at].filter(([, at]) => at <= now);
    for (const [name] of due) this.#at.delete(name);
    return due.sort(([, one], [, other]) => one - other);
  }
}

/** Waiting times that double from `first` to `maximum` seconds, with jitter. */
class Backoff {
  /** How many there were since the beginning. */
  attempts = 0;
  #first;
  #maximum;
  #jitter;

  /**
   * @param {number} first
   * @param {number} maximum
   * @param {number} [jitter] the share of each waiting time that is random: 0 for none, 1 for "full
   *   jitter", anything between zero and the whole
   */
  constructor(first, maximum, jitter = 1) {
    this.#first = first;
    this.#maximum = maximum;
    this.#jitter = jitter;
  }

  /**
   * The next waiting time.
   * @param {number} random a number in [0, 1) from outside
   */
  next(random) {
    const whole = Math.min(this.#maximum, this.#first * 2 ** this.attempts);
    this.attempts++;
    return whole * (1 - this.#jitter * random);
  }

  /** Begin again at `first`. */
  reset() {
    this.attempts = 0;
  }
}

// --- seat.js -------------------------------------------------------------------------------------

// Who this page is in a room, so that a reload has its peer id back at once: kept in sessionStorage,
// which lives as long as the tab. See meshpeer/cli/seat.py for a process's idea of the same.
//
// A tab that is duplicated begins with a copy of that storage. So a page that lives marks its seat,
// and takes the mark off when it is unloaded: a page that finds one asks, over a BroadcastChannel,
// whether its holder lives. After a crash nobody answers.
//
// Nothing here needs a secure context: a page on a host of the local network has none.

/** Seconds that the holder of a seat has to say that it lives. */
const SEAT_ANSWER_TIMEOUT = 0.2;
const SEAT_TOKEN = /^[\w-]{16,128}$/;

/**
 * What is stored of a seat. The token is a secret: whoever has it can take the id over.
 * @typedef {{peerId: string, resumeToken: string, mark: string | null}} StoredSeat
 */

/**
 * The seat that a page has. `peerId` and `resumeToken` are those of an earlier page in this tab, or
 * null; then `peerId` is what was asked for, where one was.
 * @typedef {object} Seat
 * @property {string | null} peerId
 * @property {string | null} resumeToken
 * @property {(resumeToken: string, peerId: string) => void} keep call it after each welcome
 * @property {() => void} putDown this page is done with it; a later one of this tab may have it
 * @property {() => void} release it is somebody else's, or given up for good: nothing is kept of it
 */

/** Names under which managers of this page keep their seats: each has its own. @type {Set<string>} */
const seatNames = new Set();

/**
 * The seat that an earlier page in this tab had at `key` (the relay's URL and the room), or a new one.
 * Who asks for an id has a seat of its own for it, in which the relay may have given it another one.
 *
 * Where storage is blocked or full nothing is kept, and that is no error. A seat is another tab's when
 * this tab was duplicated from that: then this is a new one, unless `peerId` asks for its id. Who asks
 * for an id gets the token as well, and takes the id over from the other tab.
 *
 * Takes 0.2 s when the earlier page was not unloaded in an orderly way, else no time.
 * @param {string} key
 * @param {object} [options]
 * @param {string | null} [options.peerId] the one that is asked for
 * @returns {Promise<Seat>}
 */
async function takeSeat(key, { peerId = null } = {}) {
  const whole = peerId === null ? key : `${key}\n${peerId}`; // of which neither has a line break
  let name = `meshpeer seat ${whole}`;
  for (let number = 2; seatNames.has(name); number++) name = `meshpeer seat ${number} ${whole}`;
  seatNames.add(name);
  let stored = readSeat(name);
  if (stored?.mark && peerId === null && (await isSeatHeld(name, stored.mark))) stored = null;

  const mark = newSeatMark();
  /** @type {StoredSeat | null} */
  let seat = stored;
  /** @type {BroadcastChannel | null} */
  let channel = null;
  let isAway = false;
  const hold = () => {
    isAway = false;
    if (seat !== null) writeSeat(name, { ...seat, mark });
    channel ??= seatChannel(name);
    channel?.addEventListener("message", answer);
  };
  /** @param {MessageEvent} event */
  const answer = ({ data }) => {
    if (data?.asks === mark) channel?.postMessage({ lives: mark });
  };
  const letGo = () => {
    isAway = true;
    channel?.close();
    channel = null;
    if (seat !== null) writeSeat(name, { ...seat, mark: null });
  };
  // A page that is put away whole (bfcache) comes back with "pageshow".
  globalThis.addEventListener?.("pagehide", letGo);
  globalThis.addEventListener?.("pageshow", hold);
  hold();
  let isDone = false;
  const putDown = () => {
    if (isDone) return;
    isDone = true;
    globalThis.removeEventListener?.("pagehide", letGo);
    globalThis.removeEventListener?.("pageshow", hold);
    if (!isAway) letGo();
    seatNames.delete(name);
  };
  return {
    peerId: seat?.peerId ?? peerId,
    resumeToken: seat?.resumeToken ?? null,
    keep(resumeToken, peerId) {
      if (isDone) return;
      seat = { peerId, resumeToken, mark };
      if (!isAway) writeSeat(name, seat);
    },
    putDown,
    release() {
      if (isDone) return;
      seat = null;
      putDown();
      removeSeat(name);
    },
  };
}

/** A random text. crypto.randomUUID is for secure contexts only. */
function newSeatMark() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join(
    "",
  );
}

/**
 * Null where there is none: then no seat that is marked is taken for free.
 * @param {string} name
 */
function seatChannel(name) {
  try {
    return new BroadcastChannel(name);
  } catch {
    return null;
  }
}

/**
 * Whether a page lives that holds the seat.
 * @param {string} name
 * @param {string} mark
 * @returns {Promise<boolean>}
 */
function isSeatHeld(name, mark) {
  const channel = seatChannel(name);
  if (channel === null) return Promise.resolve(true);
  return new Promise((resolve) => {
    /** @param {boolean} isHeld */
    const settle = (isHeld) => {
      clearTimeout(patience);
      channel.close();
      resolve(isHeld);
    };
    const patience = setTimeout(() => settle(false), SEAT_ANSWER_TIMEOUT * 1000);
    channel.addEventListener("message", ({ data }) => {
      if (data?.lives === mark) settle(true);
    });
    channel.postMessage({ asks: mark });
  });
}

/**
 * @param {string} name
 * @returns {StoredSeat | null}
 */
function readSeat(name) {
  try {
    const { peerId, resumeToken, mark } = JSON.parse(sessionStorage.getItem(name) ?? "{}");
    if (typeof peerId !== "string" || !peerId || !SEAT_TOKEN.test(resumeToken)) return null;
    return { peerId, resumeToken, mark: typeof mark === "string" ? mark : null };
  } catch {
    return null; // blocked, or what is there is not ours
  }
}

/**
 * @param {string} name
 * @param {StoredSeat} seat
 */
function writeSeat(name, seat) {
  try {
    sessionStorage.setItem(name, JSON.stringify(seat));
  } catch {
    removeSeat(name); // blocked or full: what may be there is over
  }
}

/** @param {string} name */
function removeSeat(name) {
  try {
    sessionStorage.removeItem(name);
  } catch {
    // blocked: then nothing is there
  }
}

// --- connection.js -------------------------------------------------------------------------------

// One RTCPeerConnection with the message channel and plain channels: the same as meshpeer's
// rtc/connection.py, behind the same calls as rtc/base.py.
//
// What browsers don't have is made up for here. They send no check (RFC 7675) when asked to, so a
// ping is a frame on the message channel; what waits there, or a path that loses packets, delays it.
// So when a ping is due and the one before is not answered, their own checks are asked for in the
// statistics: they go on all the time, whatever happens above them.

/**
 * Bytes in the buffer of the message channel at which `bufferLow` is told. So little, because what is
 * in there can't be overtaken.
 */
const LOW_BUFFER = 64 * 1024;

// The message channel is agreed on beforehand ("negotiated"), so it opens with SCTP itself and not a
// round trip later (RFC 8832 is what it saves).
const MESSAGE_CHANNEL = "meshpeer";
const MESSAGE_CHANNEL_ID = 0;
/** Nonces of ping frames from here on are a connection's. The shell's are from 2**31 on, a few. */
const CHECKS = 2 ** 48;
const FIRST_OF_PONG = encodeFrame({ kind: "Pong", nonce: 0 })[0];
/** Seconds after which a ping that is not answered is no reason not to send another. */
const CHECK_AGAIN = 0.9;
/** Seconds that a look into the statistics is compared with the one before, at most. */
const LOOK_BACK = 2.5;
/** Seconds to the next look: after the first, and as long as no ping would be answered soon. */
const LOOK_AGAIN = 0.5;
const LOOK_ON = 1;
/** Seconds between two `heard`. */
const HEARD_EVERY = 0.1;
/** Bytes that the other side must take at once, as every endpoint does (RFC 8841). */
const MIN_MESSAGE_SIZE = 65_536;
/** Seconds between two looks whether a browser that does not say so has moved to another pair. */
const LOOK_WHETHER_MOVED = 5;
/** Seconds for which the pair of a restart is looked for in the statistics, and between two looks. */
const LOOK_FOR_PAIR = 10;
const LOOK_FOR_PAIR_EVERY = 0.1;
/** Candidates whose servers are remembered. */
const MAX_SERVED = 256;
const ICE_ORDER = ["new", "gathering", "checking", "connected"];

/**
 * @typedef {"found" | "timed out" | "refused" | "wrong credentials" | "untrusted certificate"
 *   | "name not found" | "failed"} IceServerOutcome
 */

/**
 * What a connection tells. Called from events, never from inside a call to it.
 * - connectionOpened: the message channel is open
 * - connectionLost: the connection is over, without `close` having been called
 * - frameReceived: a frame arrived on the message channel
 * - bufferLow: the message channel's buffer has fallen to `LOW_BUFFER`
 * - channelOpened: the other side opened a plain data channel; who wants to hear all of it listens
 *   before this returns
 * - iceStateChanged: how far ICE has come: `gathering`, `checking` or `connected`. A restart does not
 *   begin it anew. That a path fell silent, or that ICE failed, the link says.
 * - iceServers: the STUN and TURN servers to ask, read when a generation begins to gather
 * - iceTransportPolicy: `relay` to use nothing but TURN
 * - candidatesFound: local candidates that the description of this generation did not have; `end`:
 *   these are the last
 * - serverReported: what came of asking a STUN or TURN server
 * - pairSelected: data goes over this pair from now on. The first time for a generation it has taken
 *   over; told again when its pair changes, or becomes known better.
 * - heard: something of the other side arrived that is no frame; at most ten times a second.
 *   `answered`: it was a check, and was answered, so the other side hears of us as well.
 * - ponged: the answer to `ping` arrived
 * - pathLost: what the selected pair goes over has ended; the connection waits for another generation
 * @typedef {object} ConnectionObserver
 * @property {() => void} connectionOpened
 * @property {(reason: string) => void} connectionLost
 * @property {(data: Uint8Array) => void} frameReceived
 * @property {() => void} bufferLow
 * @property {(channel: PlainChannel) => void} channelOpened
 * @property {(state: string) => void} iceStateChanged
 * @property {() => readonly IceServer[]} iceServers
 * @property {"all" | "relay"} [iceTransportPolicy]
 * @property {(generation: number, candidates: IceCandidate[], end: boolean) => void} candidatesFound
 * @property {(report: IceServerReport) => void} serverReported
 * @property {(generation: number, pair: CandidatePair) => void} pairSelected
 * @property {(answered: boolean) => void} heard
 * @property {(nonce: number) => void} ponged
 * @property {(reason: string) => void} pathLost
 */

/**
 * What a listener of a plain channel is told; `onLow` when its buffer falls to `low` bytes.
 * @typedef {object} RawListener
 * @property {() => void} onOpen
 * @property {(data: string | Uint8Array) => void} onMessage
 * @property {() => void} onLow
 * @property {() => void} onClose
 * @property {number} low
 */

/** A plain data channel (W3C WebRTC, RTCDataChannel). */
class PlainChannel {
  #channel;
  #heard;
  /** @type {RawListener | null} */
  #listener = null;
  #ended = false;

  /**
   * @param {RTCDataChannel} channel
   * @param {() => void} heard Called for what arrives.
   */
  constructor(channel, heard) {
    this.#channel = channel;
    this.#heard = heard;
    channel.binaryType = "arraybuffer";
  }

  get label() {
    return this.#channel.label;
  }

  /** `connecting`, `open`, `closing` or `closed`. */
  get state() {
    return this.#ended ? "closed" : this.#channel.readyState;
  }

  get bufferedAmount() {
    return this.#channel.bufferedAmount;
  }

  /** Whether it may lose messages (maxRetransmits or maxPacketLifeTime is set). */
  get lossy() {
    return this.#channel.maxRetransmits !== null || this.#channel.maxPacketLifeTime !== null;
  }

  /**
   * Throws `ChannelClosed` when it is not open, `MessageTooLarge` for more than the other side takes.
   * @param {string | Uint8Array} data
   */
  send(data) {
    if (this.state !== "open") {
      throw new ChannelClosed(`channel ${repr(this.label)} is ${this.state}`, { reason: this.state });
    }
    try {
      this.#channel.send(/** @type {any} */ (data));
    } catch (error) {
      if (error instanceof TypeError) {
        throw new MessageTooLarge(`channel ${repr(this.label)} can't send so much at once: ${describeError(error)}`);
      }
      throw new ConnectionFailed(`channel ${repr(this.label)} can't send: ${describeError(error)}`);
    }
  }

  close() {
    this.#channel.close();
  }

  /** @param {RawListener} listener */
  listen(listener) {
    const channel = this.#channel;
    this.#listener = listener;
    channel.bufferedAmountLowThreshold = listener.low;
    channel.onopen = () => listener.onOpen();
    channel.onmessage = ({ data }) => {
      this.#heard();
      listener.onMessage(typeof data === "string" ? data : new Uint8Array(data));
    };
    channel.onbufferedamountlow = () => listener.onLow();
    channel.onclose = () => this.end();
  }

  /** It is closed, with its connection maybe, of which browsers say nothing. */
  end() {
    if (this.#ended) return;
    this.#ended = true;
    const channel = this.#channel;
    channel.onopen = channel.onmessage = channel.onbufferedamountlow = channel.onclose = null;
    this.#listener?.onClose();
  }
}

/**
 * A connection. Calls are made one after another; only `close` may come while one is under way.
 *
 * The promises reject with `ProtocolError` for what the other side sent and `ConnectionFailed` for
 * everything else.
 *
 * Generation 0 is the first negotiation; each higher number is an ICE restart (RFC 8445, section 9)
 * under the same DTLS association. A restart that does not succeed changes nothing: what carries data
 * goes on carrying it. A later restart replaces one that has not taken over.
 */
class Connection {
  #observer;
  /** @type {RTCPeerConnection | null} */
  #pc = null;
  /** @type {RTCDataChannel | null} */
  #channel = null;
  #closed = false;
  #lost = false;
  /** Called when it is closed: what a closed RTCPeerConnection was asked for never settles.
      @type {Set<(error: Error) => void>} */
  #waiting = new Set();
  #iceState = "new";
  /** Plain channels that are not closed. @type {Set<PlainChannel>} */
  #channels = new Set();

  /** The latest remote description. @type {SdpSection | null} */
  #remote = null;
  /** The generation that it is of. */
  #remoteGeneration = -1;
  /** What both were before an offer that has no answer.
      @type {{remote: SdpSection | null, generation: number}} */
  #agreed = { remote: null, generation: -1 };
  /** The generation that we described last, that of the latest candidate of ours, and since when it
      gathers. */
  #described = -1;
  #found = -1;
  /** The last of which the end was told. */
  #ended = -1;
  #gathersSince = 0;
  /** Generations by the ufrag of our side, from the one that carries data on. @type {Map<string, number>} */
  #generations = new Map();
  /** The one that carries data. */
  #carries = -1;
  /** Candidates of a generation that waits for its answer.
      @type {{generation: number, candidates: IceCandidate[], end: boolean} | null} */
  #early = null;
  /** URLs of the servers of our candidates, by type, address and port. @type {Map<string, string>} */
  #servers = new Map();
  /** @type {RTCIceTransport | null} */
  #transport = null;
  /** What `pairSelected` was told last, and the id of that pair where the statistics had to tell. */
  #toldPair = "";
  #foundPair = "";
  /** When its statistics were last asked for the pair. */
  #lookedAt = -Infinity;
  /** The ids of the pairs that were there before the latest restart. @type {Set<string>} */
  #oldPairs = new Set();

  #heardAt = -Infinity;
  /** The ping that is not answered: its number and when it was sent. */
  #asked = { nonce: -1, at: -Infinity };
  /** What the statistics said of the checks so far. @type {CheckCounts | null} */
  #checks = null;
  /** Whether they are being asked for. */
  #looking = false;
  /** When they are asked for again. @type {ReturnType<typeof setTimeout> | undefined} */
  #lookTimer;

  /** @param {ConnectionObserver} observer */
  constructor(observer) {
    this.#observer = observer;
  }

  // --- negotiation ---

  /**
   * The local offer; with a generation above 0 that of an ICE restart. Candidates follow by
   * `candidatesFound`.
   * @param {number} generation
   * @returns {Promise<string>}
   */
  async createOffer(generation) {
    if (generation && this.#remote === null) throw noConnection();
    return await this.#make(generation, "offer", async (pc) => {
      if (generation) await this.#rollBack(pc);
      return await pc.createOffer({ iceRestart: generation > 0 });
    });
  }

  /**
   * The local answer to a remote offer, likewise. A restart of our own that waits for its answer is
   * given up for it.
   * @param {number} generation
   * @param {string} sdp
   * @returns {Promise<string>}
   */
  async acceptOffer(generation, sdp) {
    const section = parseSdp(sdp);
    if (generation) this.#checkRestart(section);
    return await this.#make(generation, "answer", async (pc) => {
      if (generation) await this.#rollBack(pc);
      await this.#setRemote(pc, generation, "offer", sdp, section);
      return await pc.createAnswer();
    });
  }

  /**
   * Take the answer to the latest `createOffer`; of another generation, it is ignored.
   * @param {number} generation
   * @param {string} sdp
   */
  async acceptAnswer(generation, sdp) {
    const section = parseSdp(sdp);
    if (generation) {
      if (generation !== this.#described) return;
      this.#checkRestart(section);
    }
    await this.#setRemote(this.#current(), generation, "answer", sdp, section);
  }

  /**
   * Take remote candidates. Those of a generation that is over are ignored, and so are those that name
   * another `ufrag`; the good ones count even if others are bad.
   * @param {number} generation
   * @param {readonly IceCandidate[]} candidates
   * @param {boolean} end
   */
  async addCandidates(generation, candidates, end) {
    if (this.#pc === null) return;
    if (generation > this.#remoteGeneration) {
      // They overtook the answer, without which the browser has nothing to add them to.
      if (generation !== this.#described) return;
      const early = this.#early?.generation === generation ? this.#early : { generation, candidates: [], end: false };
      this.#early = { generation, candidates: [...early.candidates, ...candidates], end: early.end || end };
      return;
    }
    if (generation < this.#remoteGeneration) return;
    await this.#add(candidates, end);
  }

  /**
   * @param {readonly IceCandidate[]} candidates
   * @param {boolean} end
   */
  async #add(candidates, end) {
    const pc = this.#current();
    const remote = /** @type {SdpSection} */ (this.#remote);
    /** @type {string[]} */
    const bad = [];
    for (const { candidate: line, sdpMid: mid, sdpMLineIndex: index } of candidates) {
      if (!line) {
        end = true; // RFC 8838, section 8.1, by way of W3C: an empty one says "no more"
        continue;
      }
      const named = ufragOf(line);
      if (named !== null && named !== remote.ufrag) continue;
      const fits = mid === null ? index === null || index === 0 : mid === remote.mid;
      let why = fits ? misfitOfCandidate(line) : `no section ${mid ?? index}`;
      if (why === null) {
        const candidate = line.startsWith("candidate:") ? line : `candidate:${line}`;
        try {
          await this.#unlessClosed(pc.addIceCandidate({ candidate, sdpMid: mid, sdpMLineIndex: index ?? 0 }));
        } catch (error) {
          if (this.#closed) throw error;
          why = describeError(error);
        }
      }
      if (why !== null) bad.push(`${repr(line.slice(0, 80))} (${why})`);
    }
    if (end) await this.#unlessClosed(pc.addIceCandidate()).catch(() => {}); // it only hastens ICE's failure
    if (bad.length) {
      throw new ProtocolError(`${bad.length} of ${candidates.length} ICE candidates can't be used, first ${bad[0]}`, {
        code: "bad_candidate",
        field: "$.candidates",
      });
    }
  }

  /**
   * @param {number} generation
   * @param {"offer" | "answer"} kind
   * @param {(pc: RTCPeerConnection) => Promise<RTCSessionDescriptionInit>} create
   */
  async #make(generation, kind, create) {
    if (this.#closed) throw closedHere();
    const pc = generation ? this.#current() : this.#open();
    this.#configure(pc);
    this.#iceIs("gathering");
    try {
      if (generation && !this.#saysPair) {
        const all = await this.#unlessClosed(pc.getStats());
        this.#oldPairs.clear();
        all.forEach((each, id) => each.type === "candidate-pair" && this.#oldPairs.add(id));
      }
      const description = await this.#unlessClosed(create(pc));
      const sdp = description.sdp ?? "";
      this.#described = generation;
      this.#gathersSince = connectionNow();
      // Before it gathers: what it finds at once is known then.
      this.#generations.set(/^a=ice-ufrag:(.*?)\r?$/m.exec(sdp)?.[1] ?? "", generation);
      await this.#unlessClosed(pc.setLocalDescription(description));
      this.#watchTransport();
      if (kind === "answer") {
        this.#iceIs("checking");
        this.#agreedOn(generation);
        await this.#addEarly();
      }
      return sdp;
    } catch (error) {
      if (this.#closed) throw closedHere();
      if (generation) await this.#rollBack(pc).catch(() => {});
      if (error instanceof ProtocolError || error instanceof ConnectionFailed) throw error;
      throw new ConnectionFailed(`no ${kind} could be made: ${describeError(error)}`);
    }
  }

  /**
   * Take back an offer, of either side, that has no answer (RFC 8829, section 4.1.10.2).
   * @param {RTCPeerConnection} pc
   */
  async #rollBack(pc) {
    if (pc.signalingState === "have-local-offer") {
      await this.#unlessClosed(pc.setLocalDescription({ type: "rollback" }));
    } else if (pc.signalingState === "have-remote-offer") {
      await this.#unlessClosed(pc.setRemoteDescription({ type: "rollback", sdp: "" }));
      this.#remote = this.#agreed.remote;
      this.#remoteGeneration = this.#agreed.generation;
    }
  }

  /**
   * @param {RTCPeerConnection} pc
   * @param {number} generation
   * @param {"offer" | "answer"} type
   * @param {string} sdp
   * @param {SdpSection} section
   */
  async #setRemote(pc, generation, type, sdp, section) {
    try {
      await this.#unlessClosed(pc.setRemoteDescription({ type, sdp }));
    } catch (error) {
      if (this.#closed) throw closedHere();
      if (error instanceof DOMException && error.name === "InvalidStateError") {
        throw new ConnectionFailed(`the ${type} does not fit the state: ${describeError(error)}`);
      }
      throw badSdp(`the ${type} can't be used: ${describeError(error)}`);
    }
    if (type === "offer") this.#agreed = { remote: this.#remote, generation: this.#remoteGeneration };
    this.#remote = section;
    this.#remoteGeneration = generation;
    if (type === "answer") this.#iceIs("checking");
    this.#watchTransport();
    if (type === "answer") {
      this.#agreedOn(generation);
      await this.#addEarly();
    }
  }

  async #addEarly() {
    const early = this.#early;
    this.#early = null;
    if (early === null || early.generation !== this.#remoteGeneration) return;
    try {
      await this.#add(early.candidates, early.end);
    } catch (error) {
      // The description is as good as it was.
      if (!(error instanceof ProtocolError)) throw error;
    }
  }

  /**
   * Refuse what is no restart of this connection (RFC 8445, section 9; RFC 8842, 5.4).
   * @param {SdpSection} section
   */
  #checkRestart(section) {
    const remote = this.#remote;
    if (remote === null) throw noConnection();
    if (section.ufrag === remote.ufrag && section.pwd === remote.pwd) {
      throw new ProtocolError("an ICE restart with the credentials unchanged (a=ice-ufrag and a=ice-pwd)", {
        code: "unchanged_credentials",
        field: "$.sdp",
      });
    }
    if (section.fingerprints.join() !== remote.fingerprints.join()) {
      throw new ProtocolError(
        "an ICE restart with another DTLS fingerprint (a=fingerprint): that is another " +
          "connection, and needs an offer of a new epoch",
        { code: "changed_fingerprint", field: "$.sdp" },
      );
    }
  }

  /**
   * @template T
   * @param {Promise<T>} promise
   * @returns {Promise<T>}
   */
  async #unlessClosed(promise) {
    /** @type {(error: Error) => void} */
    let reject = () => {};
    // One each: what a promise that lives as long as the connection is raced with is kept by it.
    const end = /** @type {Promise<never>} */ (new Promise((_, fail) => (reject = fail)));
    if (this.#closed) reject(closedHere());
    this.#waiting.add(reject);
    try {
      return await Promise.race([promise, end]);
    } finally {
      this.#waiting.delete(reject);
    }
  }

  // --- the RTCPeerConnection ---

  #current() {
    if (this.#closed) throw closedHere();
    if (this.#pc === null) throw noConnection();
    return this.#pc;
  }

  #open() {
    if (this.#pc !== null) throw new ConnectionFailed("this connection was begun already");
    // Looked up each time: what blocks it may go, and come.
    const Pc = globalThis.RTCPeerConnection;
    if (typeof Pc !== "function") {
      throw new ConnectionFailed("this browser has no RTCPeerConnection, or something blocks it");
    }
    try {
      const pc = (this.#pc = new Pc({ iceTransportPolicy: this.#policy, bundlePolicy: "max-bundle" }));
      const options = { negotiated: true, id: MESSAGE_CHANNEL_ID };
      const channel = (this.#channel = pc.createDataChannel(MESSAGE_CHANNEL, options));
      this.#listen(pc, channel);
      return pc;
    } catch (error) {
      this.#pc?.close();
      this.#pc = this.#channel = null;
      throw new ConnectionFailed(`no RTCPeerConnection can be made: ${describeError(error)}`);
    }
  }

  get #policy() {
    return this.#observer.iceTransportPolicy ?? "all";
  }

  /**
   * @param {RTCPeerConnection} pc
   * @param {RTCDataChannel} channel
   */
  #listen(pc, channel) {
    pc.onicecandidate = (event) => this.#candidate(event);
    pc.onicecandidateerror = (event) => this.#serverFailed(event);
    pc.ondatachannel = ({ channel: opened }) => this.#observer.channelOpened(this.#plain(opened));
    pc.oniceconnectionstatechange = () => {
      this.#watchTransport();
      if (pc.iceConnectionState === "failed") this.#observer.pathLost("ICE failed");
      else if (pc.iceConnectionState === "connected" && !this.#saysPair) this.#findPair().catch(() => {});
    };
    pc.onconnectionstatechange = () => {
      // "failed" is said when ICE has, too, which a restart may mend.
      const dtls = pc.sctp?.transport.state;
      if (dtls === "failed" || dtls === "closed") this.#isLost(`the connection ${dtls}`);
    };
    channel.binaryType = "arraybuffer";
    channel.bufferedAmountLowThreshold = LOW_BUFFER;
    channel.onopen = () => this.#opened();
    channel.onclose = () => this.#isLost("the message channel closed");
    channel.onbufferedamountlow = () => this.#observer.bufferLow();
    channel.onmessage = ({ data }) => {
      const frame = typeof data === "string" ? new TextEncoder().encode(data) : new Uint8Array(data);
      if (frame[0] === FIRST_OF_PONG && this.#ponged(frame)) return;
      this.#observer.frameReceived(frame);
    };
  }

  /**
   * What `iceServers` says, as far as the browser takes it.
   * @param {RTCPeerConnection} pc
   */
  #configure(pc) {
    const set = (/** @type {readonly IceServer[]} */ servers) =>
      pc.setConfiguration({
        iceServers: servers.map(rtcIceServer),
        iceTransportPolicy: this.#policy,
        bundlePolicy: "max-bundle",
      });
    const servers = this.#observer.iceServers();
    try {
      set(servers);
    } catch {
      // The signalling service named what can't be used: the others still count.
      const usable = servers.filter((server) => {
        try {
          set([server]);
          return true;
        } catch (error) {
          const url = server.urls.join(", ");
          queueMicrotask(() => this.#reported(url, "failed", describeError(error), null));
          return false;
        }
      });
      set(usable);
    }
  }

  /** @param {RTCPeerConnectionIceEvent} event */
  #candidate({ candidate }) {
    if (this.#closed) return;
    if (candidate === null || !candidate.candidate) {
      // Of the generation before, maybe: it does not say. Without an end the other side waits a little.
      if (this.#found === this.#described && this.#ended !== this.#described) {
        this.#ended = this.#described;
        this.#observer.candidatesFound(this.#described, [], true);
      }
      return;
    }
    const ufrag = candidate.usernameFragment ?? ufragOf(candidate.candidate) ?? "";
    const server = /** @type {{url?: string | null}} */ (candidate).url;
    if (server) {
      this.#servers.set(endKey(candidate), server);
      if (this.#servers.size > MAX_SERVED) this.#servers.delete([...this.#servers.keys()][0]);
      const address = `${candidate.address ?? "?"}:${candidate.port ?? "?"}`;
      this.#reported(server, "found", "", address);
    }
    const found = /** @type {const} */ ({
      kind: "IceCandidate",
      candidate: candidate.candidate,
      sdpMid: candidate.sdpMid,
      sdpMLineIndex: candidate.sdpMLineIndex,
    });
    const generation = ufrag ? this.#generations.get(ufrag) : this.#described;
    if (generation === undefined) return; // of one that is over
    this.#found = generation;
    this.#observer.candidatesFound(this.#found, [found], false);
  }

  /** @param {RTCPeerConnectionIceErrorEvent} event */
  #serverFailed({ url, errorCode, errorText }) {
    if (this.#closed || !url) return;
    /** @type {IceServerOutcome} */
    let outcome = "refused";
    if (errorCode === 401) outcome = "wrong credentials";
    else if (errorCode >= 700) outcome = /lookup|resolve|name/i.test(errorText) ? "name not found" : "timed out";
    this.#reported(url, outcome, `${errorCode} ${errorText}`.trim(), null);
  }

  /**
   * @param {string} url
   * @param {IceServerOutcome} outcome
   * @param {string} detail
   * @param {string | null} address
   */
  #reported(url, outcome, detail, address) {
    if (this.#closed) return;
    const took = Math.max(0, connectionNow() - this.#gathersSince);
    this.#observer.serverReported({ kind: "IceServerReport", url, outcome, detail, address, took });
  }

  // --- the selected pair ---

  /** It is there from the first description on, or a little later. */
  #watchTransport() {
    const transport = this.#pc?.sctp?.transport.iceTransport ?? null;
    if (transport === this.#transport || transport === null) return;
    if (this.#transport) this.#transport.onselectedcandidatepairchange = null;
    this.#transport = transport;
    transport.onselectedcandidatepairchange = () => this.#pairChanged();
    this.#pairChanged();
  }

  /** Whether the browser says which pair was selected. Firefox does not; its statistics do. */
  get #saysPair() {
    return Boolean(this.#transport?.getSelectedCandidatePair);
  }

  /**
   * Both descriptions of a generation are there. The pair of the first is looked for when it is open.
   * @param {number} generation
   */
  #agreedOn(generation) {
    if (generation && !this.#saysPair) void this.#lookForPair();
  }

  /** Whether it is known. */
  #pairChanged() {
    if (this.#closed) return false;
    const pair = this.#transport?.getSelectedCandidatePair?.();
    if (!pair?.local || !pair.remote) return false;
    const { local, remote } = pair;
    const ufrag = local.usernameFragment ?? ufragOf(local.candidate);
    this.#selected(this.#generationOf(ufrag), {
      kind: "CandidatePair",
      local: this.#endOf(local, this.#servers.get(endKey(local))),
      remote: this.#endOf(remote),
    });
    return true;
  }

  /**
   * That of a pair, by the ufrag of our side where the browser tells it.
   * @param {string | null | undefined} ufrag
   */
  #generationOf(ufrag) {
    const known = ufrag ? this.#generations.get(ufrag) : this.#remoteGeneration;
    // One that is over and came back carries data as the one after it did.
    return known ?? (this.#carries < 0 ? this.#remoteGeneration : this.#carries);
  }

  async #findPair() {
    this.#lookedAt = connectionNow();
    this.#pairFound(selectedIn(await /** @type {RTCPeerConnection} */ (this.#pc).getStats()));
  }

  /** @param {SelectedPair} found */
  #pairFound({ pair, local, remote }) {
    if (this.#closed || !pair || !local || !remote) return;
    const ufrag = local.usernameFragment;
    if (!ufrag && pair.id === this.#foundPair) return; // it is still that of the generation before
    // Without a name, a pair that is older than the latest restart is not that's.
    const isOld = !ufrag && this.#carries >= 0 && this.#oldPairs.has(pair.id);
    this.#foundPair = pair.id;
    this.#selected(isOld ? this.#carries : this.#generationOf(ufrag), {
      kind: "CandidatePair",
      local: this.#endOf({ ...local, type: local.candidateType }, local.url),
      remote: this.#endOf({ ...remote, type: remote.candidateType }),
    });
  }

  /** Looks for the pair of the newest generation, for a while. */
  async #lookForPair() {
    const generation = this.#remoteGeneration;
    for (const until = connectionNow() + LOOK_FOR_PAIR; connectionNow() < until;) {
      await this.#findPair().catch(() => {});
      if (this.#carries >= generation) return;
      await new Promise((resolve) => setTimeout(resolve, 1000 * LOOK_FOR_PAIR_EVERY));
      if (this.#closed || this.#remoteGeneration !== generation) return;
    }
  }

  /**
   * @param {{type?: string | null, address?: string | null, port?: number | null}} candidate
   * @param {string | null} [server]
   * @returns {CandidateInfo}
   */
  #endOf({ type, address, port }, server = null) {
    // An address that the browser keeps to itself is told as what it is.
    return {
      kind: "CandidateInfo",
      type: type ?? "host",
      address: address || "hidden",
      port: port ?? 0,
      server: type === "relay" ? server : null,
    };
  }

  /**
   * @param {number} generation
   * @param {CandidatePair} pair
   */
  #selected(generation, pair) {
    const told = JSON.stringify([generation, pair]);
    if (told === this.#toldPair) return;
    this.#toldPair = told;
    this.#carries = generation;
    for (const [ufrag, each] of this.#generations) if (each < generation) this.#generations.delete(ufrag);
    this.#asked.at = -Infinity; // it may have been lost with the pair before
    // A browser that does not choose the pair moves to it only when something arrives over it.
    this.sendFrame(encodeFrame({ kind: "Ping", nonce: 0 }));
    // It is found in calls to us as well.
    queueMicrotask(() => {
      if (this.#closed) return;
      this.#iceIs("connected");
      this.#observer.pairSelected(generation, pair);
    });
  }

  /** @param {string} state */
  #iceIs(state) {
    // A restart does not begin anew: what carries data goes on.
    if (ICE_ORDER.indexOf(state) <= ICE_ORDER.indexOf(this.#iceState)) return;
    this.#iceState = state;
    queueMicrotask(() => {
      if (!this.#closed) this.#observer.iceStateChanged(state);
    });
  }

  // --- signs of life ---

  /**
   * Ask the other side whether it is there; `ponged` when it answers, `heard` if something else shows
   * that it is.
   * @param {number} nonce
   */
  ping(nonce) {
    const channel = this.#channel;
    if (channel?.readyState !== "open") return;
    const at = connectionNow();
    const tellsLittle = this.#pingTellsLittle;
    // Not behind much, nor behind another one: over a dead path they would pile up.
    if (at - this.#asked.at > CHECK_AGAIN && channel.bufferedAmount <= LOW_BUFFER) {
      this.#asked = { nonce, at };
      this.sendFrame(encodeFrame({ kind: "Ping", nonce: CHECKS + nonce }));
    }
    if (tellsLittle) void this.#look(nonce, at);
    // Nothing says that it has moved to another pair.
    if (!this.#saysPair && at - this.#lookedAt > LOOK_WHETHER_MOVED) this.#findPair().catch(() => {});
  }

  /** Whether one is not answered, or another one would wait behind much: for seconds, on a slow path. */
  get #pingTellsLittle() {
    return this.#asked.at !== -Infinity || this.bufferedAmount > LOW_BUFFER;
  }

  /**
   * What the browser's own checks found since it was looked for them.
   * @param {number} nonce
   * @param {number} asked when
   */
  async #look(nonce, asked) {
    const pc = this.#pc;
    if (pc === null || this.#looking) return;
    this.#looking = true;
    try {
      const selected = selectedIn(await pc.getStats());
      const { pair } = selected;
      if (this.#closed || !pair) return;
      if (!this.#saysPair && pair.id !== this.#foundPair) this.#pairFound(selected);
      const before = this.#checks;
      const found = (this.#checks = {
        id: /** @type {string} */ (pair.id),
        at: connectionNow(),
        heard: (pair.requestsReceived ?? 0) + (pair.responsesReceived ?? 0) + (pair.bytesReceived ?? 0),
        answers: pair.responsesReceived ?? 0,
      });
      // What was before says nothing of now.
      const isFirst = before === null || before.id !== found.id || found.at - before.at > LOOK_BACK;
      this.#lookAgain(nonce, asked, isFirst ? LOOK_AGAIN : LOOK_ON);
      if (isFirst || found.heard === before.heard) return;
      this.#observer.heard(true);
      if (found.answers === before.answers) return;
      // They measure the round trip, so it is told when an answer to the ping would have come.
      const left = (pair.currentRoundTripTime ?? 0) - (connectionNow() - asked);
      setTimeout(() => this.#closed || this.#observer.ponged(nonce), 1000 * Math.max(0, left));
    } catch {
      // It closes.
    } finally {
      this.#looking = false;
    }
  }

  /**
   * Frames that are put into the buffer put off the next ping, which would look as well.
   * @param {number} nonce
   * @param {number} asked
   * @param {number} after seconds
   */
  #lookAgain(nonce, asked, after) {
    clearTimeout(this.#lookTimer);
    this.#lookTimer = setTimeout(() => {
      if (!this.#closed && this.#pingTellsLittle) void this.#look(nonce, asked);
    }, 1000 * after);
  }

  /**
   * Whether this is the answer to a ping of ours, and no frame for others.
   * @param {Uint8Array} data
   */
  #ponged(data) {
    let frame;
    try {
      frame = decodeFrame(data);
    } catch {
      return false; // who takes frames refuses it
    }
    if (frame.kind !== "Pong" || frame.nonce < CHECKS) return false;
    const nonce = frame.nonce - CHECKS;
    if (nonce !== this.#asked.nonce) {
      this.#heard();
      return true;
    }
    this.#asked.at = -Infinity;
    this.#checks = null;
    this.#observer.heard(true);
    this.#observer.ponged(nonce);
    return true;
  }

  #heard() {
    const at = connectionNow();
    if (this.#closed || at - this.#heardAt < HEARD_EVERY) return;
    this.#heardAt = at;
    this.#observer.heard(false);
  }

  // --- data ---

  /** Bytes that wait in the message channel. */
  get bufferedAmount() {
    return this.#channel?.bufferedAmount ?? 0;
  }

  /**
   * Put a frame into the buffer of the message channel; dropped when it is not open.
   * @param {Uint8Array} data
   */
  sendFrame(data) {
    const channel = this.#channel;
    if (channel?.readyState !== "open") return;
    try {
      channel.send(/** @type {Uint8Array<ArrayBuffer>} */ (data));
    } catch (error) {
      // A frame is missing now, and what follows it would not be understood.
      const reason = `the message channel can't send: ${describeError(error)}`;
      queueMicrotask(() => this.#isLost(reason));
    }
  }

  /**
   * Open a plain data channel (W3C WebRTC, createDataChannel).
   * @param {string} label
   * @param {{ordered?: boolean, maxRetransmits?: number | null, maxPacketLifeTime?: number | null}} [options]
   * @returns {PlainChannel}
   */
  openChannel(label, { ordered = true, maxRetransmits = null, maxPacketLifeTime = null } = {}) {
    const pc = this.#current();
    /** @type {RTCDataChannelInit} */
    const init = { ordered };
    if (maxRetransmits !== null) init.maxRetransmits = maxRetransmits;
    if (maxPacketLifeTime !== null) init.maxPacketLifeTime = maxPacketLifeTime;
    try {
      return this.#plain(pc.createDataChannel(label, init));
    } catch (error) {
      throw new UsageError(`channel ${repr(label)} can't be opened: ${describeError(error)}`);
    }
  }

  /** @param {RTCDataChannel} channel */
  #plain(channel) {
    const raw = new PlainChannel(channel, () => this.#heard());
    this.#channels.add(raw);
    channel.addEventListener("close", () => this.#channels.delete(raw), { once: true });
    return raw;
  }

  #opened() {
    if (this.#closed) return;
    this.#watchTransport();
    if (!this.#toldPair && !this.#pairChanged()) void this.#lookForPair();
    // Behind the pair, where that is known, and before what arrives.
    queueMicrotask(() => this.#closed || this.#observer.connectionOpened());
  }

  // --- what is known of it ---

  /**
   * How it stands, for people who look for a fault: plain JSON. Empty before it was begun.
   * @returns {Promise<object>}
   */
  async stats() {
    const pc = this.#pc;
    if (pc === null) return {};
    /** @type {Map<string, any>} */
    const all = new Map();
    try {
      (await this.#unlessClosed(pc.getStats())).forEach((each, id) => all.set(id, each));
    } catch {
      // What the states say is told all the same.
    }
    const { pair: selected } = selectedIn(all);
    const end = (/** @type {any} */ each) => ({
      type: each?.candidateType ?? null,
      protocol: each?.protocol ?? null,
      address: each?.address ?? null,
      port: each?.port ?? null,
      priority: each?.priority ?? null,
      url: each?.url ?? null,
      relayProtocol: each?.relayProtocol ?? null,
      usernameFragment: each?.usernameFragment ?? null,
      generation: this.#generations.get(each?.usernameFragment ?? "") ?? null,
    });
    const pairOf = (/** @type {any} */ each) => ({
      selected: each === selected,
      state: each.state ?? null,
      nominated: each.nominated ?? null,
      local: end(all.get(each.localCandidateId)),
      remote: end(all.get(each.remoteCandidateId)),
      bytesSent: each.bytesSent ?? 0,
      bytesReceived: each.bytesReceived ?? 0,
      currentRoundTripTime: each.currentRoundTripTime ?? null,
      requestsSent: each.requestsSent ?? null,
      requestsReceived: each.requestsReceived ?? null,
      responsesSent: each.responsesSent ?? null,
      responsesReceived: each.responsesReceived ?? null,
    });
    const of = (/** @type {string} */ type) => [...all.values()].filter((each) => each.type === type);
    return {
      connectionState: pc.connectionState,
      iceConnectionState: pc.iceConnectionState,
      iceGatheringState: pc.iceGatheringState,
      signalingState: pc.signalingState,
      dtlsState: pc.sctp?.transport.state ?? null,
      sctpState: pc.sctp?.state ?? null,
      iceRole: /** @type {{role?: string} | null} */ (this.#transport)?.role ?? null,
      channelState: this.#channel?.readyState ?? null,
      bufferedAmount: this.bufferedAmount,
      generation: { described: this.#described, remote: this.#remoteGeneration },
      selectedPair: selected ? pairOf(selected) : null,
      pairs: of("candidate-pair").map(pairOf),
      localCandidates: of("local-candidate").map(end),
      remoteCandidates: of("remote-candidate").map(end),
      bytesSent: selected?.bytesSent ?? 0,
      bytesReceived: selected?.bytesReceived ?? 0,
      roundTrip: selected?.currentRoundTripTime ?? null,
      channels: of("data-channel").map((each) => ({
        label: each.label ?? "",
        state: each.state ?? null,
        messagesSent: each.messagesSent ?? 0,
        messagesReceived: each.messagesReceived ?? 0,
        bytesSent: each.bytesSent ?? 0,
        bytesReceived: each.bytesReceived ?? 0,
      })),
    };
  }

  // --- the end ---

  /** @param {string} reason */
  #isLost(reason) {
    if (this.#closed || this.#lost) return;
    this.#lost = true;
    this.#observer.connectionLost(reason);
  }

  /**
   * Close the RTCPeerConnection, which tells the other side at once (DTLS close_notify). What is in the
   * buffer may be lost. It may be called more than once, and while another call is under way, which
   * then rejects.
   */
  async close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const reject of this.#waiting) reject(closedHere());
    clearTimeout(this.#lookTimer);
    const pc = this.#pc;
    const channel = this.#channel;
    if (this.#transport) this.#transport.onselectedcandidatepairchange = null;
    if (channel) channel.onopen = channel.onclose = channel.onmessage = channel.onbufferedamountlow = null;
    if (pc) {
      pc.onicecandidate = pc.onicecandidateerror = pc.ondatachannel = null;
      pc.oniceconnectionstatechange = pc.onconnectionstatechange = null;
      pc.close();
    }
    this.#early = null;
    const channels = [...this.#channels];
    this.#channels.clear();
    // Not from inside this call.
    await null;
    for (const each of channels) each.end();
  }
}

// --- session descriptions --------------------------------------------------------------------------

/**
 * The data channel section of a session description, as far as it is looked at.
 * @typedef {{ufrag: string, pwd: string, fingerprints: string[], mid: string}} SdpSection
 */

/**
 * Throws `ProtocolError` for what can't describe a data channel: before anything is changed for it.
 * @param {string} sdp
 * @returns {SdpSection}
 */
function parseSdp(sdp) {
  const parts = sdp.split(/^(?=m=)/m);
  const kinds = parts.slice(1).map((part) => /^m=(\S*)/.exec(part)?.[1] ?? "");
  if (kinds.length !== 1 || kinds[0] !== "application") {
    const names = kinds.map(repr).join(", ");
    throw badSdp(`the session description has the sections [${names}], expected one data channel section`);
  }
  const [session, media] = parts.map(attributesOf);
  const last = (/** @type {string} */ name) => (media.get(name) ?? session.get(name))?.at(-1) ?? "";
  const fingerprints = [...(session.get("fingerprint") ?? []), ...(media.get("fingerprint") ?? [])];
  if (!fingerprints.length || !["actpass", "active", "passive"].includes(last("setup"))) {
    throw badSdp("the session description has no usable a=fingerprint and a=setup");
  }
  if (!/^\d+$/.test(media.get("sctp-port")?.at(-1) ?? "")) {
    throw badSdp("the session description has no a=sctp-port");
  }
  const [ufrag, pwd, mid] = [last("ice-ufrag"), last("ice-pwd"), media.get("mid")?.at(-1) ?? ""];
  if (!(ufrag.length >= 4 && ufrag.length <= 256 && pwd.length >= 22 && pwd.length <= 256)) {
    throw badSdp(
      "the session description has no usable ICE credentials: a=ice-ufrag has 4 to 256 " +
        "characters, a=ice-pwd 22 to 256 (RFC 8839, section 5.4)",
    );
  }
  for (const group of session.get("group") ?? []) {
    const [semantic, ...items] = group.trim().split(/\s+/);
    if (semantic === "BUNDLE" && !(items.length === 1 && items[0] === mid)) {
      throw badSdp("the session description bundles sections that it does not have");
    }
  }
  const size = media.get("max-message-size")?.at(-1);
  if (size !== undefined) {
    if (!/^\d+$/.test(size)) throw badSdp(`the session description does not parse: a=max-message-size:${size}`);
    if (Number(size) > 0 && Number(size) < MIN_MESSAGE_SIZE) {
      throw badSdp(`a=max-message-size is ${size}, and must be 0 (any) or at least ${MIN_MESSAGE_SIZE}`);
    }
  }
  for (const candidate of media.get("candidate") ?? []) {
    const why = misfitOfCandidate(candidate);
    if (why !== null) throw badSdp(`the session description has a candidate that can't be used: ${why}`);
  }
  return { ufrag, pwd, fingerprints, mid };
}

/**
 * The attributes of one section, by name; those without a value have an empty one.
 * @param {string} part
 */
function attributesOf(part) {
  /** @type {Map<string, string[]>} */
  const found = new Map();
  for (const [, name, value = ""] of part.matchAll(/^a=([^:\r\n]+)(?::([^\r\n]*))?/gm)) {
    const values = found.get(name);
    if (values) values.push(value);
    else found.set(name, [value]);
  }
  return found;
}

/**
 * Why a candidate can't be used, or null. What is only of no use here is not unfit.
 * @param {string} line
 */
function misfitOfCandidate(line) {
  const fields = line
    .replace(/^candidate:/, "")
    .trim()
    .split(/\s+/);
  const isNumber = (/** @type {string} */ text) => /^\d+$/.test(text);
  if (fields.length < 8 || ![fields[1], fields[3], fields[5]].every(isNumber)) return "it does not parse";
  return Number(fields[5]) > 65535 ? `port ${fields[5]}` : null;
}

/**
 * The ICE username that a candidate says it belongs to.
 * @param {string} line
 */
function ufragOf(line) {
  return /\bufrag (\S+)/.exec(line)?.[1] ?? null;
}

// --- what browsers say -----------------------------------------------------------------------------

/** @typedef {{id: string, at: number, heard: number, answers: number}} CheckCounts */

/** @typedef {{pair: any, local: any, remote: any}} SelectedPair */

/**
 * The selected candidate pair in the statistics, with its two ends.
 * @param {{forEach(callback: (each: any, id: string) => void): void, get(id: string): any}} all
 * @returns {SelectedPair}
 */
function selectedIn(all) {
  /** @type {any} */
  let pair = null;
  all.forEach((each) => {
    if (each.type === "transport" && each.selectedCandidatePairId) pair = all.get(each.selectedCandidatePairId) ?? pair;
    else if (each.type === "candidate-pair" && each.selected && pair === null) pair = each; // Firefox
  });
  return {
    pair,
    local: pair ? all.get(pair.localCandidateId) : null,
    remote: pair ? all.get(pair.remoteCandidateId) : null,
  };
}

/**
 * @param {IceServer} server
 * @returns {RTCIceServer}
 */
function rtcIceServer({ urls, username, credential }) {
  /** @type {RTCIceServer} */
  const server = { urls: [...urls] };
  if (username !== null) server.username = username;
  if (credential !== null) server.credential = credential;
  return server;
}

/** @param {{type?: string | null, address?: string | null, port?: number | null}} candidate */
function endKey({ type, address, port }) {
  return `${type} ${address} ${port}`;
}

/** @param {unknown} error */
function describeError(error) {
  if (!(error instanceof Error)) return String(error);
  return error.message ? `${error.name}: ${error.message}` : error.name;
}

/** @param {string} text */
function badSdp(text) {
  return new ProtocolError(text, { code: "bad_sdp", field: "$.sdp" });
}

function noConnection() {
  return new ConnectionFailed("an ICE restart before there is a connection to restart");
}

function closedHere() {
  return new ConnectionFailed("the connection was closed here");
}

/** In seconds, on a clock that only goes forward. */
function connectionNow() {
  return performance.now() / 1000;
}

// --- delivery.js ---------------------------------------------------------------------------------

// All messages between two incarnations: each exactly once, in order, whatever path they take.
//
// Every channel numbers its parts. The sender keeps them until they are acknowledged; the receiver
// takes them in order, each once, and says how many more it takes. Neither begins anew with a new
// connection or another path: a `Delivery` lives as long as both processes and what they know of
// each other.
//
// **The receiver chooses the path.** On the one it wants it sends a `Resume`, with what it has of
// each channel and a *round*, which rises with each. The sender obeys the latest round: it answers
// `Start` on that path and goes on from there, whatever it had sent elsewhere. What arrives on
// another path, or before that answer, is of an earlier round and not looked at. So on each path,
// within a round, parts follow each other without a gap, and nothing depends on what else a path
// lost.
//
// **Credit** is given by channel: `channelWindow` beyond what the application has taken. What of a
// large message does not fit into that is reserved from `receiveWindow`, which all channels share:
// all that it needs, as soon as there is so much, so that no two messages wait for each other half
// received.
//
// Among the channels that have something to send the one goes first that has had least, by its
// priority (start-time fair queueing): a large message lets others pass between its parts.

/**
 * An encoded part, and what it is charged.
 * @typedef {[part: Uint8Array, charge: number]} Item
 */

/**
 * A moment in what was accepted: for some channels, how many parts had been accepted by then.
 * @typedef {[number: number, place: number][]} Mark
 */

/**
 * A message ready to be sent; made once, however many peers get it.
 * @typedef {object} Outgoing
 * @property {"Outgoing"} kind
 * @property {string} channel
 * @property {number} size  bytes of the message
 * @property {readonly Item[]} parts  as `encodeMessage` makes them
 */

/** @typedef {"very-low" | "low" | "medium" | "high"} Priority */

/**
 * What delivery takes of the settings (MeshConfig). Sizes are bytes.
 * @typedef {object} DeliveryConfig
 * @property {number} maxMessageSize
 * @property {number} sendWindow
 * @property {number} channelWindow
 * @property {number} receiveWindow
 * @property {number} maxChannels
 * @property {Readonly<Record<string, Priority>>} channelPriorities  by the name of the channel
 * @property {number} ackDelay  seconds
 */

/** The path over the relay. Every other path is the epoch of its connection, from 1. */
const RELAY = 0;
/** What may arrive, by its charge, before it is acknowledged without delay. */
const ACK_EVERY = 64 * 1024;
/** Bytes of the largest message that a side must take at least, as `maxMessageSize` has it. */
const MIN_MAX_MESSAGE = 1024;
/**
 * The credit that a side must give each channel at least: the largest part fits into it, even if
 * what the sender knows of it is an eighth behind.
 */
const MIN_WINDOW = 32 * 1024;
/**
 * The share that a channel of each priority gets (W3C WebRTC Priority Control, RTCPriorityType).
 * @type {Readonly<Record<Priority, number>>}
 */
const PRIORITIES = Object.freeze({ "very-low": 1, low: 2, medium: 4, high: 8 });
/** Bytes that the head of a run may have, and a part that is worth another run. */
const RUN_HEAD = 24;

/**
 * A whole message. `charge` is to be given back with `Delivery.taken`.
 *
 * It is kept as the bytes that came, which are what `charge` counts; they are known to decode.
 */
class Received {
  /**
   * @param {KindValue} valueKind
   * @param {string} channel
   * @param {number} number  of the channel, among those of the sender
   * @param {Uint8Array} payload
   * @param {number} charge
   * @param {RoleValue} role
   * @param {number} request  the number of the request that this is, or answers; 0 when it is neither
   */
  constructor(valueKind, channel, number, payload, charge, role, request) {
    this.kind = "Received";
    this.valueKind = valueKind;
    this.channel = channel;
    this.number = number;
    this.payload = payload;
    this.charge = charge;
    this.role = role;
    this.request = request;
  }

  /**
   * The data that was sent, built anew by each call: text, bytes, or what JSON says.
   * @returns {unknown}
   */
  value() {
    return decodeValue(this.valueKind, this.payload);
  }
}

/**
 * A queue with two ends; what is done at either takes the same time however long it is.
 * @template T
 */
class Deque {
  static #LEAST = 16;
  /** A ring that had to be longer than this is not kept once it is empty. */
  static #KEPT = 1024;

  /**
   * A ring; its length is a power of two.
   * @type {(T | undefined)[]}
   */
  #ring = new Array(Deque.#LEAST);
  #head = 0;
  #size = 0;

  get size() {
    return this.#size;
  }

  /**
   * The first, which must be there.
   * @returns {T}
   */
  get first() {
    return /** @type {T} */ (this.#ring[this.#head]);
  }

  /** @param {T} item */
  push(item) {
    if (this.#size === this.#ring.length) this.#grow();
    this.#ring[(this.#head + this.#size++) & (this.#ring.length - 1)] = item;
  }

  /** @param {T} item */
  unshift(item) {
    if (this.#size === this.#ring.length) this.#grow();
    this.#head = (this.#head - 1) & (this.#ring.length - 1);
    this.#ring[this.#head] = item;
    this.#size++;
  }

  /**
   * Take out the first, which must be there.
   * @returns {T}
   */
  shift() {
    const item = this.first;
    this.#ring[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#ring.length - 1);
    this.#shrink();
    return item;
  }

  /**
   * Take out the last, which must be there.
   * @returns {T}
   */
  pop() {
    const at = (this.#head + this.#size - 1) & (this.#ring.length - 1);
    const item = /** @type {T} */ (this.#ring[at]);
    this.#ring[at] = undefined;
    this.#shrink();
    return item;
  }

  clear() {
    this.#ring = new Array(Deque.#LEAST);
    this.#head = this.#size = 0;
  }

  *[Symbol.iterator]() {
    for (let i = 0; i < this.#size; i++) {
      yield /** @type {T} */ (this.#ring[(this.#head + i) & (this.#ring.length - 1)]);
    }
  }

  #grow() {
    this.#ring = [...this.#ring.slice(this.#head), ...this.#ring.slice(0, this.#head)];
    this.#ring.length *= 2;
    this.#head = 0;
  }

  #shrink() {
    if (--this.#size === 0 && this.#ring.length > Deque.#KEPT) this.clear();
  }
}

/** What is to go out on one channel. */
class Sending {
  /** The virtual time at which it has had its share; the lowest goes next. */
  turn = 0;
  /** All parts before this one have arrived. */
  acked = 0;
  /** The first that is in the queue; those between are in `unacked`. */
  next = 0;
  /** Beyond the highest that was ever sent. */
  most = 0;
  /** What all parts before `next` are charged. */
  offset = 0;
  /** @type {Deque<Item>} */
  unacked = new Deque();
  /** @type {Deque<Item>} */
  queue = new Deque();
  /**
   * Parts that have arrived, of a message of which others have not.
   * @type {Uint8Array[]}
   */
  half = [];
  /** What all that is unacknowledged is charged. */
  waiting = 0;
  /**
   * Where, and how many, parts were taken out of the queue: marks before count without.
   * @type {[at: number, count: number][]}
   */
  removed = [];
  /**
   * The parts that were given up last, from and to: they have not arrived, though `acked` is
   * beyond.
   * @type {[start: number, stop: number]}
   */
  lost = [0, 0];

  /**
   * @param {number} number
   * @param {string} name
   * @param {number} share
   * @param {number} limit
   */
  constructor(number, name, share, limit) {
    this.number = number;
    this.name = name;
    this.share = share;
    this.limit = limit;
  }

  get ready() {
    return this.queue.size > 0 && this.offset + this.queue.first[1] <= this.limit;
  }

  /** Beyond the last that was accepted. */
  get end() {
    return this.next + this.queue.size;
  }

  /**
   * All before this part have arrived; how many more messages that are.
   * @param {number} arrived
   */
  acknowledge(arrived) {
    const { half, unacked, queue } = this;
    let messages = 0;
    for (let count = arrived - this.acked; count > 0; count--) {
      let item;
      if (unacked.size) {
        item = unacked.shift();
      } else {
        // It arrived over the path before, and was to be sent again.
        item = queue.shift();
        this.next++;
        this.offset += item[1];
      }
      this.waiting -= item[1];
      if (!isLast(item[0])) {
        half.push(item[0]);
        continue;
      }
      messages++;
      if (half.length) half.length = 0;
    }
    this.acked = Math.max(this.acked, arrived);
    return messages;
  }

  /** Send what is unacknowledged once more. */
  rewind() {
    const { unacked, queue } = this;
    while (unacked.size) {
      const item = unacked.pop();
      this.offset -= item[1];
      queue.unshift(item);
    }
    this.next = this.acked;
  }

  /** The parts of each message that has not arrived whole. */
  messages() {
    /** @type {Uint8Array[][]} */
    const out = [];
    let message = [...this.half];
    for (const items of [this.unacked, this.queue]) {
      for (const [part] of items) {
        message.push(part);
        if (isLast(part)) {
          out.push(message);
          message = [];
        }
      }
    }
    return out;
  }

  /** Give up what has not arrived; what is accepted from now on follows it. */
  clear() {
    for (const [, charge] of this.queue) this.offset += charge;
    if (this.end > this.acked) this.lost = [this.acked, this.end];
    this.acked = this.next = this.most = this.end;
    this.unacked.clear();
    this.queue.clear();
    this.half.length = 0;
    this.waiting = 0;
  }

  /** How many parts were taken out of the queue. */
  get gone() {
    return this.removed.reduce((sum, [, count]) => sum + count, 0);
  }
}

/** What arrives on one channel. */
class Receiving {
  /** The part that is waited for. */
  next = 0;
  /** What all parts before it were charged. */
  received = 0;
  /** How much of that the application has taken. */
  taken = 0;
  /** Whether the sender knows less than there is to know. */
  stale = false;
  /**
   * The first part of a message that has not arrived whole.
   * @type {Part | null}
   */
  head = null;
  /** @type {Uint8Array[]} */
  pieces = [];
  /** Bytes of the pieces. */
  size = 0;
  /** What they were charged. */
  charge = 0;

  /**
   * @param {number} number
   * @param {string} name
   * @param {number} limit
   */
  constructor(number, name, limit) {
    this.number = number;
    this.name = name;
    this.limit = limit;
    /** The limit that the sender knows. */
    this.told = limit;
  }

  forgetHalf() {
    this.taken += this.charge;
    this.head = null;
    this.pieces = [];
    this.size = this.charge = 0;
  }
}

/**
 * Both directions between two incarnations. No I/O, no clock.
 *
 * `attach` and `detach` say which path is wanted and which is gone; what arrives goes in by
 * `received`; what is to go out on path `out` comes from `pull`.
 */
class Delivery {
  /** Messages that were accepted. */
  messagesSent = 0;
  /**
   * How many of them arrived over a connection, direct or through TURN, and not over the relay:
   * each counts once, when it is acknowledged, for the path that is used then.
   */
  messagesDirect = 0;
  messagesReceived = 0;
  /** What the messages have that were accepted. */
  bytesSent = 0;
  bytesReceived = 0;

  /** @type {DeliveryConfig} */
  #config;

  // Sending.
  /** @type {Map<string, Sending>} */
  #channels = new Map();
  /** @type {Sending[]} */
  #numbered = [];
  /** @type {number | null} */
  #out = null;
  /**
   * The latest `out` there was.
   * @type {number | null}
   */
  #sentOn = null;
  #theirRound = 0;
  /** @type {number | null} */
  #maxMessage = null;
  #maxChannels;
  #window = 0;
  // What waits for room on the path. Of what the other side can ask for again and again, only the
  // latest answer does.
  /** @type {Deque<Uint8Array>} */
  #control = new Deque();
  /** @type {Uint8Array | null} */
  #answer = null;
  /** @type {number | null} */
  #pong = null;
  #nowTurn = 0;
  #toAsk = false;
  /** @type {Mark | null} */
  #asked = null;
  /** @type {UndeliveredMessage[]} */
  #refused = [];
  /** @type {number[]} */
  #refusedRequests = [];

  // Receiving.
  /** @type {Receiving[]} */
  #incoming = [];
  /** @type {number | null} */
  #in = null;
  #round = 0;
  #started = false;
  /**
   * Those that wait for credit; there are few.
   * @type {Receiving[]}
   */
  #hungry = [];
  #sinceAck = 0;
  /** @type {number | null} */
  #ackAt = null;
  #ackNow = false;

  /** @param {DeliveryConfig} config */
  constructor(config) {
    this.#config = config;
    this.#maxChannels = config.maxChannels;
  }

  // --- paths ---

  /** The path that the other side wants to receive on; null while there is none. */
  get out() {
    return this.#out;
  }

  /** The path that we asked to receive on. */
  get inbound() {
    return this.#in;
  }

  /**
   * Receive on this path from now on: the frame that says so, to be sent on it.
   * @param {number} path
   * @param {{ask: boolean}} options `ask`: the other side is to do the same, as we want to send
   *   there.
   */
  attach(path, { ask }) {
    this.#in = path;
    this.#started = false;
    this.#round++;
    for (const channel of this.#incoming) {
      channel.stale = false;
      channel.told = channel.limit;
    }
    this.#acknowledged();
    return encodeFrame({
      kind: "Resume",
      round: this.#round,
      ask,
      maxMessage: this.#config.maxMessageSize,
      maxChannels: this.#config.maxChannels,
      window: this.#config.channelWindow,
      limits: this.#incoming.map(limitOf),
    });
  }

  /**
   * Receive on path `out` from now on, as the other side asked: `pull` has the frame.
   * @param {number} path
   */
  answer(path) {
    if (path !== this.#out) throw new Error(`path ${path} is not that of the other side`);
    this.#answer = this.attach(path, { ask: false });
  }

  /** Whether an answer waits for room. */
  get answering() {
    return this.#answer !== null;
  }

  /**
   * Answer a ping; of several that wait for room, the latest is.
   * @param {number} nonce
   */
  pong(nonce) {
    this.#pong = nonce;
  }

  /**
   * This path is gone.
   * @param {number} path
   */
  detach(path) {
    if (this.#out === path) {
      this.#out = this.#answer = this.#pong = null;
      this.#control.clear();
    }
    if (this.#in === path) {
      this.#in = null;
      this.#started = false;
    }
  }

  // --- sending ---

  /**
   * Whether another message of this channel is accepted now.
   * @param {string} channel
   */
  hasRoom(channel) {
    const sending = this.#channels.get(channel);
    return sending === undefined || sending.waiting < this.#config.sendWindow;
  }

  /**
   * Take a message on; it goes out as soon as it may. The place it has, for `arrived`.
   *
   * Throws `MessageTooLarge`, `TooManyChannels`.
   * @param {Outgoing} message
   * @returns {[number: number, place: number]}
   */
  accept(message) {
    if (this.#maxMessage !== null && message.size > this.#maxMessage) {
      throw new MessageTooLarge(
        `the message has ${message.size} bytes, the other side takes ${this.#maxMessage}: send it in parts`,
      );
    }
    const channel = this.#channels.get(message.channel) ?? this.#open(message.channel);
    // Who had nothing to send has no claim to what the others had meanwhile.
    if (!channel.queue.size) channel.turn = Math.max(channel.turn, this.#nowTurn);
    for (const item of message.parts) {
      channel.queue.push(item);
      channel.waiting += item[1];
    }
    this.messagesSent++;
    this.bytesSent += message.size;
    return [channel.number, channel.end + channel.gone];
  }

  /** @param {string} name */
  #open(name) {
    const number = this.#channels.size;
    if (number >= this.#maxChannels) {
      throw new TooManyChannels(
        `${number} channels are in use already, as many as the other side takes: ${repr(name)} would be one more`,
      );
    }
    const priorities = this.#config.channelPriorities;
    const share = PRIORITIES[Object.hasOwn(priorities, name) ? priorities[name] : "low"];
    const channel = new Sending(number, name, share, this.#window);
    this.#channels.set(name, channel);
    this.#numbered.push(channel);
    if (this.#out !== null) this.#control.push(encodeFrame({ kind: "Open", channel: number, name }));
    return channel;
  }

  /**
   * All that was accepted so far.
   * @returns {Mark}
   */
  mark() {
    return this.#numbered.filter((c) => c.waiting > 0).map((c) => [c.number, c.end + c.gone]);
  }

  /**
   * Whether the other side has acknowledged all of it.
   * @param {Mark} mark
   */
  arrived(mark) {
    for (const [number, place] of mark) {
      const channel = this.#numbered[number];
      if (channel === undefined) continue; // refused, with all that was accepted for it
      let end = place;
      for (const [at, count] of channel.removed) if (at < place) end -= count;
      const [start, stop] = channel.lost;
      if (end > channel.acked || (start < end && end <= stop)) return false;
    }
    return true;
  }

  /** Somebody waits for acknowledgements: they are not to be delayed. */
  ask() {
    this.#toAsk = true;
  }

  /** Whether something accepted has not gone out. */
  get unsent() {
    return this.#numbered.some((channel) => channel.queue.size > 0);
  }

  /** What was accepted and has not arrived as far as is known, by its charge. */
  get unacknowledged() {
    return this.#numbered.reduce((sum, channel) => sum + channel.waiting, 0);
  }

  /** Whether `pull` has something that is not a message. */
  get due() {
    return (
      this.#out !== null &&
      (this.#ackNow || this.#control.size > 0 || this.#answer !== null || this.#pong !== null)
    );
  }

  /**
   * The next frame for path `out`, of at most `size` bytes unless it is one part; null when there
   * is none to be sent now.
   * @param {number} size
   * @returns {Uint8Array | null}
   */
  pull(size) {
    if (this.#out === null) return null;
    if (this.#answer !== null) {
      const answer = this.#answer;
      this.#answer = null;
      return answer;
    }
    if (this.#control.size) return this.#control.shift();
    if (this.#ackNow) return this.#acks();
    if (this.#pong !== null) {
      const nonce = this.#pong;
      this.#pong = null;
      return encodeFrame({ kind: "Pong", nonce });
    }
    /** @type {Uint8Array[]} */
    const pieces = [];
    let room = Math.min(size, MAX_FRAME) - 1;
    for (let channel = this.#next(); channel !== null; channel = this.#next()) {
      const used = Delivery.#run(channel, room, pieces);
      if (!used) break;
      room -= used;
      this.#nowTurn = channel.turn;
      channel.turn += used / channel.share;
      if (room < 2 * RUN_HEAD) break;
    }
    return pieces.length ? encodeParts(pieces) : this.#question();
  }

  /** The channel whose turn it is. */
  #next() {
    /** @type {Sending | null} */
    let best = null;
    for (const channel of this.#numbered) {
      if (channel.ready && (best === null || channel.turn < best.turn)) best = channel;
    }
    return best;
  }

  /**
   * Put a run of parts behind `pieces`; the bytes that it takes.
   * @param {Sending} channel
   * @param {number} room
   * @param {Uint8Array[]} pieces
   */
  static #run(channel, room, pieces) {
    const { queue, unacked, limit } = channel;
    const head = pieces.length;
    let { offset } = channel;
    let left = room - RUN_HEAD;
    let used = 0;
    let count = 0;
    while (queue.size) {
      const item = queue.first;
      const [part, charge] = item;
      left -= part.length;
      // A part that is too large for what was asked still goes when it is alone.
      if ((left < 0 && (count || head)) || offset + charge > limit) break;
      if (!count) pieces.push(part); // in the place of the head, which is known when all are there
      offset += charge;
      queue.shift();
      unacked.push(item);
      pieces.push(part);
      used += part.length;
      count++;
    }
    if (!count) return 0;
    pieces[head] = runHead(channel.number, channel.next, count);
    channel.next += count;
    channel.offset = offset;
    channel.most = Math.max(channel.most, channel.next);
    return pieces[head].length + used;
  }

  /** A ping behind all that was sent, once, when somebody waits for it to arrive. */
  #question() {
    if (!this.#toAsk || this.unsent) return null;
    this.#toAsk = false;
    /** @type {Mark} */
    const mark = this.#numbered.filter((c) => c.unacked.size > 0).map((c) => [c.number, c.next]);
    if (!mark.length || (this.#asked !== null && sameMark(mark, this.#asked))) return null;
    this.#asked = mark;
    return encodeFrame({ kind: "Ping", nonce: 0 });
  }

  /** The other side is gone: what has not arrived. Nothing of it is sent any more. */
  giveUp() {
    /** @type {UndeliveredMessage[]} */
    const messages = [];
    for (const channel of this.#numbered) {
      for (const each of undelivered(channel.messages(), channel.name)) messages.push(each);
      channel.clear();
    }
    return messages;
  }

  /**
   * What was accepted before it was known that the other side does not take messages so large, or
   * so many channels; and the numbers of the requests among it. Told once.
   * @returns {[messages: UndeliveredMessage[], requests: number[]]}
   */
  refused() {
    /** @type {[UndeliveredMessage[], number[]]} */
    const refused = [this.#refused, this.#refusedRequests];
    this.#refused = [];
    this.#refusedRequests = [];
    return refused;
  }

  // --- what arrives ---

  /**
   * A frame arrived on a path. Adds the messages that are whole now to `messages`.
   *
   * Throws `ProtocolError` for what is out of place, too large, beyond the credit, or does not
   * decode; what was added before counts.
   * @param {number} path
   * @param {Frame} frame
   * @param {number} now
   * @param {Received[]} messages
   */
  received(path, frame, now, messages) {
    switch (frame.kind) {
      case "Parts":
        if (this.#started && path === this.#in) this.#parts(frame.runs, now, messages);
        break;
      case "Ack":
        for (const limit of frame.limits) this.#limited(limit);
        break;
      case "Open":
        if (this.#started && path === this.#in) this.#opened(frame.channel, frame.name);
        break;
      case "Start":
        if (frame.round === this.#round && path === this.#in && !this.#started) {
          this.#start(frame.channels);
        }
        break;
      case "Resume":
        throw new Error("a resume goes to `resumed`");
      case "Ping":
        if (this.#sinceAck || this.#incoming.some((c) => c.stale)) this.#ackNow = true;
        break;
    }
  }

  /**
   * The other side wants to receive on this path. False when a later round is known.
   *
   * Throws `ProtocolError`, and changes nothing, when it says what can't be.
   * @param {number} path
   * @param {Resume} resume
   */
  resumed(path, resume) {
    if (resume.round <= this.#theirRound) return false;
    if (resume.maxMessage < MIN_MAX_MESSAGE) {
      throw new ProtocolError(
        `it takes messages of ${resume.maxMessage} bytes, the least is ${MIN_MAX_MESSAGE}`,
        { code: "bad_limit", field: "max_message" },
      );
    }
    if (resume.window < MIN_WINDOW) {
      throw new ProtocolError(
        `it gives a channel ${resume.window} of credit, the least is ${MIN_WINDOW}`,
        { code: "bad_limit", field: "window" },
      );
    }
    for (const limit of resume.limits) this.#check(limit);
    if (path !== this.#out) this.#answer = null;
    for (const limit of resume.limits) this.#limited(limit); // of what went over the path before
    this.#theirRound = resume.round;
    this.#out = this.#sentOn = path;
    this.#window = resume.window;
    if (this.#maxMessage === null) this.#setLimits(resume);
    for (const channel of this.#numbered) {
      this.#raise(channel, resume.window);
      channel.rewind();
      channel.turn = Math.max(channel.turn, this.#nowTurn);
    }
    for (const incoming of this.#incoming) {
      // What was last said of it may be lost with the path before.
      incoming.stale = this.#ackNow = true;
    }
    this.#asked = null;
    this.#toAsk = true; // somebody may wait whose question was lost with the path before
    this.#pong = null;
    this.#control.clear();
    this.#control.push(
      encodeFrame({
        kind: "Start",
        round: resume.round,
        channels: this.#numbered.map((c) => ({
          kind: "Channel",
          channel: c.number,
          seq: c.next,
          offset: c.offset,
          name: c.name,
        })),
      }),
    );
    return true;
  }

  /**
   * They are those of the other side's program, so the first that are told hold.
   * @param {Resume} resume
   */
  #setLimits(resume) {
    this.#maxMessage = resume.maxMessage;
    this.#maxChannels = Math.min(resume.maxChannels, MAX_CHANNELS);
    for (const channel of this.#numbered.splice(this.#maxChannels)) {
      this.#refuse(channel.messages(), channel.name);
      this.#channels.delete(channel.name);
    }
    for (const channel of this.#numbered) this.#refuseLarger(channel, resume.maxMessage);
  }

  /**
   * Nothing of this channel was sent yet.
   * @param {Sending} channel
   * @param {number} most
   */
  #refuseLarger(channel, most) {
    let place = channel.next; // what was given up before has its numbers
    channel.lost = [0, 0];
    for (const parts of channel.messages()) {
      const items = parts.map(() => channel.queue.shift());
      place += parts.length;
      if (decodeMessage(parts)[2].length <= most) {
        // Behind the others, so that all are where they were.
        for (const item of items) channel.queue.push(item);
      } else {
        this.#refuse([parts], channel.name);
        for (const [, charge] of items) channel.waiting -= charge;
        channel.removed.push([place - 1, parts.length]);
      }
    }
  }

  /**
   * @param {Uint8Array[][]} messages
   * @param {string} channel
   */
  #refuse(messages, channel) {
    for (const each of undelivered(messages, channel)) this.#refused.push(each);
    for (const parts of messages) {
      const number = requestNumber(parts);
      if (number) this.#refusedRequests.push(number);
    }
  }

  /** @param {Limit} limit */
  #check(limit) {
    const channels = this.#numbered;
    if (limit.channel >= channels.length) {
      throw new ProtocolError(
        `channel ${limit.channel} is acknowledged, ${channels.length} are in use`,
        { code: "bad_ack", field: "channel" },
      );
    }
    const channel = channels[limit.channel];
    if (limit.next > channel.most) {
      throw new ProtocolError(
        `${limit.next} parts of channel ${repr(channel.name)} are acknowledged, ${channel.most} were sent`,
        { code: "bad_ack", field: "next" },
      );
    }
    return channel;
  }

  /** @param {Limit} limit */
  #limited(limit) {
    const channel = this.#check(limit);
    const messages = channel.acknowledge(limit.next);
    if (this.#sentOn !== null && this.#sentOn !== RELAY) this.messagesDirect += messages;
    this.#raise(channel, limit.limit);
  }

  /**
   * @param {Sending} channel
   * @param {number} limit
   */
  #raise(channel, limit) {
    if (limit <= channel.limit) return; // overtaken, by another path
    if (!channel.ready) channel.turn = Math.max(channel.turn, this.#nowTurn);
    channel.limit = limit;
  }

  // --- the receiving side ---

  /**
   * @param {number} number
   * @param {string} name
   */
  #opened(number, name) {
    const known = this.#incoming.length;
    if (number < known && this.#incoming[number].name === name) return this.#incoming[number];
    if (number !== known || this.#incoming.some((channel) => channel.name === name)) {
      throw new ProtocolError(
        `channel ${number} can't be ${repr(name)}, ${known} are in use`,
        { code: "bad_channel", field: "channel" },
      );
    }
    if (known >= this.#config.maxChannels) {
      throw new ProtocolError(
        `channel ${repr(name)} would be one more than ${known}, the limit`,
        { code: "too_many_channels", field: "channel" },
      );
    }
    const channel = new Receiving(number, name, this.#config.channelWindow);
    this.#incoming.push(channel);
    return channel;
  }

  /** @param {readonly FrameChannel[]} channels */
  #start(channels) {
    for (const { channel: number, seq, offset, name } of channels) {
      const channel = this.#opened(number, name);
      if (seq <= channel.next && offset <= channel.received) continue;
      if (seq <= channel.next || offset <= channel.received) {
        throw new ProtocolError(
          `channel ${repr(name)} can't go on at part ${seq}, ${offset}: it is at ${channel.next}, ${channel.received}`,
          { code: "bad_sequence", field: "seq" },
        );
      }
      // The sender gave up what is between.
      channel.forgetHalf();
      channel.taken += offset - channel.received;
      channel.next = seq;
      channel.received = offset;
      this.#extend(channel);
      channel.stale = this.#ackNow = true;
    }
    this.#started = true;
    this.#feed();
  }

  /**
   * @param {Run[]} runs
   * @param {number} now
   * @param {Received[]} out
   */
  #parts(runs, now, out) {
    const since = this.#sinceAck;
    const first = out.length;
    try {
      for (const { channel: number, seq, parts } of runs) {
        if (number >= this.#incoming.length) {
          throw new ProtocolError(
            `parts of channel ${number}, ${this.#incoming.length} are open`,
            { code: "bad_channel", field: "channel" },
          );
        }
        const channel = this.#incoming[number];
        if (seq > channel.next) {
          throw new ProtocolError(
            `part ${seq} of channel ${repr(channel.name)}, ${channel.next} is the next`,
            { code: "bad_sequence", field: "seq" },
          );
        }
        channel.stale = true;
        for (let i = channel.next - seq; i < parts.length; i++) this.#part(channel, parts[i], out);
      }
    } finally {
      for (let i = first; i < out.length; i++) {
        this.messagesReceived++;
        this.bytesReceived += out[i].charge - OVERHEAD;
      }
      if (this.#sinceAck >= ACK_EVERY) this.#ackNow = true;
      else if (!since) this.#ackAt = now + this.#config.ackDelay;
    }
  }

  /**
   * @param {Receiving} channel
   * @param {Part} part
   * @param {Received[]} out
   */
  #part(channel, part, out) {
    const { flags, total, payload } = part;
    const begins = (flags & FIRST) !== 0;
    const ends = (flags & LAST) !== 0;
    const { maxMessageSize } = this.#config;
    const head = channel.head;
    let charge = payload.length;
    if (begins) {
      charge += OVERHEAD;
      if (head !== null) throw outOfPlace("a message begins inside another");
      if (total > maxMessageSize) {
        throw new ProtocolError(
          `a message of ${total} bytes, the limit is ${maxMessageSize}`,
          { code: "too_large", field: "total" },
        );
      }
    } else if (head === null) {
      throw outOfPlace("a part of no message");
    }
    const received = channel.received + charge;
    if (received > channel.limit) {
      throw new ProtocolError(
        `${received} was sent on channel ${repr(channel.name)}, the credit is ${channel.limit}`,
        { code: "beyond_credit", field: "payload" },
      );
    }
    if (begins && ends) {
      if (payload.length > maxMessageSize) {
        throw new ProtocolError(
          `a message of ${payload.length} bytes, the limit is ${maxMessageSize}`,
          { code: "too_large", field: "length" },
        );
      }
      // The application gets bytes of its own: it may look at their buffer.
      out.push(wholeMessage(channel, part, payload.slice(), charge));
    } else if (begins) {
      const piece = kept(payload);
      channel.head = { ...part, payload: piece };
      channel.pieces.push(piece);
      channel.size = payload.length;
      channel.charge = charge;
    } else if (head !== null) {
      const size = channel.size + payload.length;
      if (size > head.total || (ends && size < head.total)) {
        throw new ProtocolError(
          `a message of ${head.total} bytes has ${size}`,
          { code: "bad_frame", field: "total" },
        );
      }
      if (ends) {
        const message = wholeMessage(channel, head, assembled(channel.pieces, payload, size), channel.charge + charge);
        channel.charge = 0;
        channel.forgetHalf();
        out.push(message);
      } else {
        channel.pieces.push(kept(payload));
        channel.size = size;
        channel.charge += charge;
      }
    }
    channel.received = received;
    channel.next++;
    this.#sinceAck += charge;
    if (begins && !ends && received + total - payload.length > channel.limit) {
      if (!this.#hungry.includes(channel)) this.#hungry.push(channel);
      this.#feed();
    }
  }

  /**
   * The application took a message; `due` says whether that is worth a frame.
   * @param {number} number Of the channel.
   * @param {number} charge
   */
  taken(number, charge) {
    const channel = this.#incoming[number];
    if (channel === undefined) return; // of an incarnation that is back, after all of it was forgotten
    channel.taken = Math.min(channel.taken + charge, channel.received);
    this.#extend(channel);
    if (this.#hungry.length) this.#feed();
  }

  /**
   * How much the channel has reserved of what all share.
   * @param {Receiving} channel
   */
  #beyond(channel) {
    return Math.max(0, channel.limit - channel.taken - this.#config.channelWindow);
  }

  /**
   * Give the channel what it may have by itself.
   * @param {Receiving} channel
   */
  #extend(channel) {
    const window = this.#config.channelWindow;
    const limit = channel.taken + window;
    if (limit > channel.limit) {
      channel.limit = limit;
      // Not for each message: an eighth of the window is worth a frame.
      if (limit - channel.told >= window >> 3) channel.stale = this.#ackNow = true;
    }
  }

  /** Reserve what half received messages need, the one that waits longest first. */
  #feed() {
    while (this.#hungry.length) {
      const channel = this.#hungry[0];
      if (channel.head !== null) {
        const whole = channel.received - channel.charge + OVERHEAD + channel.head.total;
        const more = whole - channel.limit;
        if (more > 0) {
          const reserved = this.#incoming.reduce((sum, each) => sum + this.#beyond(each), 0);
          if (reserved + more > this.#config.receiveWindow) return;
          channel.limit = whole;
          channel.stale = this.#ackNow = true;
        }
      }
      this.#hungry.shift();
    }
  }

  /** What has arrived and the application has not taken, by its charge. */
  get unread() {
    return this.#incoming.reduce((sum, channel) => sum + channel.received - channel.taken, 0);
  }

  /** Bytes that have arrived of messages that are not complete. */
  get half() {
    return this.#incoming.reduce((sum, channel) => sum + channel.size, 0);
  }

  // --- acknowledgements and time ---

  /** When `tick` is wanted next. */
  nextDeadline() {
    return this.#ackAt;
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    if (this.#ackAt !== null && this.#ackAt <= now) {
      this.#ackAt = null;
      this.#ackNow = true;
    }
  }

  /** What has arrived and was not acknowledged, before we leave: to be sent on any path. */
  lastAck() {
    return this.#incoming.some((channel) => channel.stale) ? this.#acks() : null;
  }

  #acks() {
    /** @type {Limit[]} */
    const limits = [];
    for (const channel of this.#incoming) {
      if (channel.stale) {
        channel.stale = false;
        channel.told = channel.limit;
        limits.push(limitOf(channel));
      }
    }
    this.#acknowledged();
    return encodeFrame({ kind: "Ack", limits });
  }

  #acknowledged() {
    this.#ackNow = false;
    this.#ackAt = null;
    this.#sinceAck = 0;
  }
}

/**
 * @param {Receiving} channel
 * @returns {Limit}
 */
function limitOf(channel) {
  return { kind: "Limit", channel: channel.number, next: channel.next, limit: channel.limit };
}

/**
 * @param {Mark} one
 * @param {Mark} other
 */
function sameMark(one, other) {
  return one.length === other.length && one.every(([number, place], i) => number === other[i][0] && place === other[i][1]);
}

/**
 * @param {Receiving} channel
 * @param {Part} head The first of its parts.
 * @param {Uint8Array} payload
 * @param {number} charge
 */
function wholeMessage(channel, head, payload, charge) {
  const kind = partKind(head);
  checkValue(kind, payload);
  return new Received(kind, channel.name, channel.number, payload, charge, partRole(head), head.number);
}

/**
 * @param {Uint8Array[]} pieces
 * @param {Uint8Array} last
 * @param {number} size  of all of them
 */
function assembled(pieces, last, size) {
  const out = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  out.set(last, at);
  return out;
}

/**
 * What is kept of a frame until its message is complete: a copy, unless it is most of the frame.
 * @param {Uint8Array} payload
 */
function kept(payload) {
  return 2 * payload.length < payload.buffer.byteLength ? payload.slice() : payload;
}

/** @param {string} text */
function outOfPlace(text) {
  return new ProtocolError(text, { code: "unexpected_frame", field: "flags" });
}

/**
 * What applications sent, of messages by their parts.
 *
 * @param {Uint8Array[][]} messages
 * @param {string} channel
 * @returns {UndeliveredMessage[]}
 */
function undelivered(messages, channel) {
  if (channel.startsWith(RESERVED)) return [];
  return messages
    .map(decodeMessage)
    .filter(([, role]) => role === Role.PLAIN)
    .map(([kind, , payload]) => ({ kind: "UndeliveredMessage", data: decodeValue(kind, payload), channel }));
}

// --- trickle.js ----------------------------------------------------------------------------------

// The candidates of one ICE generation, both ways, as they are found (RFC 8838).
//
// Ours wait until the description they belong to was sent. Theirs go to the connection as they
// come; each side may have MAX_CANDIDATES, those in its description included. Who does not say that
// there will be no others is taken to have said it some time after the latest (forced completion):
// without an end ICE would never report that it failed.

/** The candidates of one generation. */
class Trickle {
  /**
   * When `complete` is wanted.
   * @type {number | null}
   */
  completeAt = null;

  #epoch;
  #generation;
  #timeout;
  // Ours: whether the description was sent, what waits for it, and how many more are taken.
  #sent = false;
  /** @type {IceCandidate[]} */
  #held = [];
  #heldEnd = false;
  #room = MAX_CANDIDATES;
  // Theirs: how many came, and whether that was all.
  #theirs = 0;
  #ended = false;

  /**
   * @param {number} epoch
   * @param {number} generation
   * @param {number} timeout seconds to the forced completion
   */
  constructor(epoch, generation, timeout) {
    this.#epoch = epoch;
    this.#generation = generation;
    this.#timeout = timeout;
  }

  // --- ours ---

  /**
   * Local candidates were found. More than the other side takes are not sent.
   * @param {readonly IceCandidate[]} candidates
   * @param {{end: boolean}} options
   * @returns {SendSignal[]}
   */
  found(candidates, { end }) {
    if (!this.#sent) {
      this.#held.push(...candidates.slice(0, this.#room - this.#held.length));
      this.#heldEnd ||= end;
      return [];
    }
    const taken = candidates.slice(0, this.#room);
    this.#room -= taken.length;
    if (!taken.length && !end) return [];
    const body = { kind: /** @type {const} */ ("Candidates"), candidates: taken, end, generation: this.#generation };
    return [{ kind: "SendSignal", epoch: this.#epoch, body }];
  }

  /**
   * Our description was sent: what waited for it follows.
   * @param {string} sdp
   */
  sent(sdp) {
    this.#sent = true;
    this.#room = Math.max(0, this.#room - countCandidates(sdp));
    const held = this.#held;
    this.#held = [];
    return this.found(held, { end: this.#heldEnd });
  }

  // --- theirs ---

  /**
   * Whether the other side may have so many more.
   * @param {number} more
   */
  fits(more) {
    return this.#theirs + more <= MAX_CANDIDATES;
  }

  /**
   * Their description came.
   * @param {string} sdp
   * @param {number} now
   */
  described(sdp, now) {
    this.#theirs += countCandidates(sdp);
    if (!this.#ended) this.completeAt = now + this.#timeout;
  }

  /**
   * More of theirs came.
   * @param {readonly IceCandidate[]} candidates
   * @param {{end: boolean, now: number}} options
   */
  received(candidates, { end, now }) {
    // Messages without candidates have no limit. All but the first that ends them say nothing.
    const isNews = candidates.length > 0 || (end && !this.#ended);
    this.#theirs += candidates.length;
    this.#ended ||= end;
    if (this.#ended) this.completeAt = null;
    else if (candidates.length && this.completeAt !== null) this.completeAt = now + this.#timeout;
    return isNews ? [this.#add([...candidates], end)] : [];
  }

  /** Nothing came for a while: that was all. */
  complete() {
    this.completeAt = null;
    this.#ended = true;
    return [this.#add([], true)];
  }

  /**
   * @param {IceCandidate[]} candidates
   * @param {boolean} end
   * @returns {Operate}
   */
  #add(candidates, end) {
    const generation = this.#generation;
    return { kind: "Operate", epoch: this.#epoch, operation: { kind: "AddCandidates", candidates, end, generation } };
  }
}

// --- mesh.js -------------------------------------------------------------------------------------

// One node's view of the room: who is there, as which incarnation, and who dials whom.
//
// The roster comes from the signalling service; the links and their state from the node. Mesh only
// decides which links there are: at most one for each peer id, to its current incarnation.

/**
 * Somebody is there: make a link. `dials`: this side does.
 * @typedef {{kind: "OpenLink", member: Member, dials: boolean}} OpenLink
 */
/**
 * Somebody is gone: end the link.
 * @typedef {{kind: "CloseLink", peerId: string, incarnation: string, reason: string}} CloseLink
 */
/**
 * A member has another name or other metadata.
 * @typedef {{kind: "Renamed", member: Member}} Renamed
 */
/**
 * Signals get to this peer, or don't.
 * @typedef {{kind: "Reachable", peerId: string, reachable: boolean}} Reachable
 */
/** @typedef {OpenLink | CloseLink | Renamed | Reachable} MeshOutput */

/**
 * `present`: the signalling service knows it. `alive`: a direct path to it is.
 * @typedef {{member: Member, present: boolean, alive: boolean}} RosterEntry
 */

/** The roster of one node. */
class Mesh {
  #peerId;
  #incarnation;
  /** @type {Map<string, RosterEntry>} */
  #roster = new Map();
  /** When who is absent is given up. */
  #grace = new Deadlines();
  /** Whether the signalling service can't be reached: nobody's absence can be seen then. */
  #lost = false;
  #seatTimeout = 0;

  /**
   * @param {string} peerId our own
   * @param {string} incarnation
   */
  constructor(peerId, incarnation) {
    this.#peerId = peerId;
    this.#incarnation = incarnation;
  }

  /** Our own id. */
  get peerId() {
    return this.#peerId;
  }

  /** Our own incarnation. */
  get incarnation() {
    return this.#incarnation;
  }

  /**
   * Whether this peer is there.
   * @param {string} peerId
   */
  has(peerId) {
    return this.#roster.has(peerId);
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    return this.#grace.next();
  }

  // --- presence ---

  /**
   * The whole room, after a join or a loss that was not resumed.
   *
   * Who is missing has `seatTimeout` seconds to come back: after a restart of the service everybody
   * has to, and whoever does so first must not take the others for gone.
   * @param {readonly Member[]} members
   * @param {number} seatTimeout
   * @param {number} now
   */
  welcome(members, seatTimeout, now) {
    /** @type {MeshOutput[]} */
    const out = [];
    this.#seatTimeout = seatTimeout;
    const listed = new Set(members.map((member) => member.peerId));
    for (const [peerId, entry] of this.#roster) {
      if (!entry.present || listed.has(peerId)) continue;
      entry.present = false;
      this.#grace.set(peerId, now + seatTimeout);
      out.push({ kind: "Reachable", peerId, reachable: false });
    }
    this.#lookAgain(now);
    for (const member of members) out.push(...this.joined(member));
    return out;
  }

  /**
   * The service is back, and nothing was missed.
   * @param {number} now
   */
  resumed(now) {
    this.#lookAgain(now);
    return this.#present(true);
  }

  /** The service can't be reached; the roster stays as it is, until it is back. */
  signalingLost() {
    this.#lost = true;
    this.#grace.clearAll();
    return this.#present(false);
  }

  /**
   * All that the service knows are reachable now, or not.
   * @param {boolean} reachable
   * @returns {MeshOutput[]}
   */
  #present(reachable) {
    const present = [...this.#roster].filter(([, entry]) => entry.present);
    return present.map(([peerId]) => ({ kind: "Reachable", peerId, reachable }));
  }

  /**
   * Who was absent may have come back meanwhile, or has as long as we had to do so.
   * @param {number} now
   */
  #lookAgain(now) {
    if (!this.#lost) return;
    this.#lost = false;
    for (const [peerId, entry] of this.#roster) {
      if (!entry.present) this.#grace.set(peerId, now + this.#seatTimeout);
    }
  }

  /**
   * Somebody has a seat.
   * @param {Member} member
   * @returns {MeshOutput[]}
   */
  joined(member) {
    const { peerId, incarnation } = member;
    // Ids are unique in a room; a service that says otherwise is not believed.
    if (peerId === this.#peerId) return [];
    /** @type {MeshOutput[]} */
    const out = [];
    const entry = this.#roster.get(peerId);
    if (entry?.member.incarnation === incarnation) {
      this.#grace.clear(peerId);
      entry.present = true;
      if (!isSame(entry.member, member)) {
        entry.member = member;
        out.push({ kind: "Renamed", member });
      }
      out.push({ kind: "Reachable", peerId, reachable: true });
      return out;
    }
    if (entry) out.push(...this.#forget(peerId, entry, "superseded"));
    this.#roster.set(peerId, { member, present: true, alive: false });
    out.push({ kind: "OpenLink", member, dials: compareTexts(this.#peerId, peerId) < 0 });
    return out;
  }

  /**
   * Somebody's seat is gone.
   * @param {MemberLeft} message
   * @returns {MeshOutput[]}
   */
  left({ peerId, incarnation, reason }) {
    const entry = this.#find(peerId, incarnation);
    if (!entry) return [];
    if (reason === "timeout" && entry.alive) {
      // Only its way to the service is dead. It has a seat again as soon as that is mended.
      entry.present = false;
      this.#grace.clear(peerId);
      return [{ kind: "Reachable", peerId, reachable: false }];
    }
    return this.#forget(peerId, entry, reason);
  }

  /**
   * Somebody's name or metadata changed.
   * @param {MemberUpdated} message
   * @returns {MeshOutput[]}
   */
  updated({ peerId, incarnation, name, metadata }) {
    const entry = this.#find(peerId, incarnation);
    if (!entry) return [];
    entry.member = { kind: "Member", peerId, incarnation, name, metadata };
    return [{ kind: "Renamed", member: entry.member }];
  }

  // --- the links ---

  /**
   * A direct path to the peer is alive, or no longer is.
   * @param {string} peerId
   * @param {boolean} alive
   */
  linkAlive(peerId, alive) {
    const entry = /** @type {RosterEntry} */ (this.#roster.get(peerId));
    entry.alive = alive;
    if (alive || entry.present || this.#lost || this.#grace.get(peerId) !== null) return [];
    return this.#forget(peerId, entry, "timeout");
  }

  /**
   * The peer said goodbye over the direct path.
   * @param {string} peerId
   * @param {string} incarnation
   */
  departed(peerId, incarnation) {
    const entry = this.#find(peerId, incarnation);
    return entry ? this.#forget(peerId, entry, "left") : [];
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {MeshOutput[]} */
    const out = [];
    for (const [peerId] of this.#grace.due(now)) {
      const entry = /** @type {RosterEntry} */ (this.#roster.get(peerId));
      if (!entry.alive) out.push(...this.#forget(peerId, entry, "timeout"));
    }
    return out;
  }

  /** This node leaves: nobody is there any more. */
  close() {
    return [...this.#roster].flatMap(([peerId, entry]) => this.#forget(peerId, entry, "closed"));
  }

  /**
   * @param {string} peerId
   * @param {string} incarnation
   */
  #find(peerId, incarnation) {
    const entry = this.#roster.get(peerId);
    return entry?.member.incarnation === incarnation ? entry : null;
  }

  /**
   * @param {string} peerId
   * @param {RosterEntry} entry
   * @param {string} reason
   * @returns {MeshOutput[]}
   */
  #forget(peerId, entry, reason) {
    this.#roster.delete(peerId);
    this.#grace.clear(peerId);
    return [{ kind: "CloseLink", peerId, incarnation: entry.member.incarnation, reason }];
  }
}

/**
 * Whether two values of JSON are the same; fields may be in any order.
 * @param {unknown} one
 * @param {unknown} other
 * @returns {boolean}
 */
function isSame(one, other) {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return one === other;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const [fields, others] = [Object.entries(one), new Map(Object.entries(other))];
  return fields.length === others.size && fields.every(([name, value]) => others.has(name) && isSame(value, others.get(name)));
}

// --- route.js ------------------------------------------------------------------------------------

// Which path we want to receive on: the direct one while there is one, else the relay.
//
// The two sides of a pair need not agree beforehand. Each says where it wants to receive (delivery
// has the frames for it), asks the other to do the same, and goes along with what the other asks
// for. Who hears nothing on a path is the one who knows, so its word counts; the latest word does.
//
// ROUTE_TABLE is the whole of it. An input that it does not list changes nothing.

/**
 * Where data comes from.
 * - none: nowhere; the relay is not asked yet, or can't be
 * - direct: over the link's connection, through TURN or not
 * - asking: the relay is asked for, and nothing has come over it
 * - relay: over the relay
 * @typedef {"none" | "direct" | "asking" | "relay"} RouteState
 */

/**
 * What can happen to a route.
 * - relay up: the relay forwards to this peer
 * - asked on the direct path: the other side wants to receive there, and that we do as well
 * - answered over the relay: it wants to receive there, as we asked
 * - patience: there was no direct path for `relayAfter`
 * - again: the relay was asked for a while ago
 * - silence: nothing came over the relay for `silenceTimeout`
 * - fault: what came over the relay can't be understood
 * @typedef {"link up" | "link down" | "relay up" | "relay down"
 *   | "asked on the direct path" | "asked over the relay" | "answered over the relay"
 *   | "patience" | "again" | "silence" | "fault"} RouteInput
 */

/**
 * In `state`, on `input`: do `actions`, be in `next`. `reason` is shown to users when the path
 * changes.
 * @typedef {[state: RouteState, input: RouteInput, next: RouteState, actions: string[],
 *   reason: string]} RouteRow
 */

/** @type {readonly RouteRow[]} */
const ROUTE_TABLE = [
  // <generated: route-table>
  ["none", "link up", "direct", ["attachDirect"], "connected"],
  ["asking", "link up", "direct", ["attachDirect"], "connected"],
  ["relay", "link up", "direct", ["attachDirect"], "connected"],
  ["direct", "link down", "none", ["bePatient"], "no direct path"],
  ["none", "patience", "asking", ["attachRelay"], "no direct path for {} s"],
  ["asking", "again", "asking", ["attachRelay"], "no answer over the relay"],
  ["relay", "silence", "asking", ["attachRelay"], "nothing heard over the relay for {} s"],
  ["none", "asked over the relay", "relay", ["answerRelay"], "the other side asks for the relay"],
  ["direct", "asked over the relay", "relay", ["answerRelay"], "the other side asks for the relay"],
  ["relay", "asked over the relay", "relay", ["answerRelay"], "the other side asks for the relay"],
  ["asking", "asked over the relay", "relay", ["answerRelay"], "no direct path for {} s"],
  ["asking", "answered over the relay", "relay", [], "no direct path for {} s"],
  ["relay", "asked on the direct path", "direct", ["answerDirect"], "the direct path is back"],
  ["asking", "asked on the direct path", "direct", ["answerDirect"], "the direct path is back"],
  ["direct", "asked on the direct path", "direct", ["answerDirect"], "connected"],
  ["none", "relay up", "none", ["retry"], "the relay is there"],
  ["asking", "relay down", "none", ["bePatient"], "the relay can't be reached"],
  ["relay", "relay down", "none", ["bePatient"], "the relay can't be reached"],
  ["asking", "fault", "none", ["waitMore"], "a fault over the relay"],
  ["relay", "fault", "none", ["waitMore"], "a fault over the relay"],
  // </generated>
];

/** @type {ReadonlyMap<string, RouteRow>} */
const ROUTE_INDEX = new Map(ROUTE_TABLE.map((row) => [`${row[0]}, ${row[1]}`, row]));

/**
 * Receive on this path from now on; `ask` the other side to do the same.
 * @typedef {{kind: "Attach", relay: boolean, ask: boolean}} Attach
 */
/**
 * Ask over the relay whether the other side is there; `Route.ponged` when it answers.
 * @typedef {{kind: "Ping", nonce: number}} RoutePing
 */
/** @typedef {Attach | RoutePing} RouteOutput */

/**
 * What a route takes of the settings (MeshConfig), in seconds. `relayAfter` null: never.
 * @typedef {object} RouteConfig
 * @property {number | null} relayAfter
 * @property {number} pingInterval
 * @property {number} silenceTimeout
 * @property {number} retryFirst
 * @property {number} retryMax
 */

/** One pair's. `start` comes first; then every method returns what is to be done. */
class Route {
  /** @type {RouteState} */
  state = "none";
  /** Why it is in this state. */
  reason = "";
  /**
   * The latest round trip over the relay, in seconds.
   * @type {number | null}
   */
  rtt = null;

  #config;
  /** @type {Deadlines<"patience" | "again" | "look">} */
  #deadlines = new Deadlines();
  #again;
  #faults;
  #relay = false;
  #link = false;
  #overdue = false;
  #heardAt = 0;
  #nonce = 0;
  /** @type {number | null} */
  #pingedAt = null;
  // When it was pinged for the first time since something was heard.
  /** @type {number | null} */
  #askedAt = null;
  /** @type {RouteOutput[]} */
  #out = [];

  /** @param {RouteConfig} config */
  constructor(config) {
    this.#config = config;
    this.#again = new Backoff(config.pingInterval, 4 * config.pingInterval, 0);
    this.#faults = new Backoff(config.retryFirst, config.retryMax, 0);
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    return this.#deadlines.next();
  }

  /**
   * The peer is there.
   * @param {number} now
   */
  start(now) {
    this.#bePatient(now);
  }

  // --- inputs ---

  /**
   * The link's connection carries data, or no longer.
   * @param {number} now
   * @param {{up: boolean}} options
   */
  link(now, { up }) {
    this.#link = up;
    return this.#feed(up ? "link up" : "link down", now);
  }

  /**
   * The relay forwards to this peer, or no longer.
   * @param {number} now
   * @param {{up: boolean}} options
   */
  relay(now, { up }) {
    if (this.#config.relayAfter === null || up === this.#relay) return [];
    this.#relay = up;
    return this.#feed(up ? "relay up" : "relay down", now);
  }

  /**
   * The other side wants to receive on this path, and what is its latest word.
   * @param {number} now
   * @param {{relay: boolean, ask: boolean}} options
   */
  asked(now, { relay, ask }) {
    if (relay && !this.#relay) return [];
    // Its answer as well says that it is there, if we went along to the relay meanwhile.
    if (!relay) return this.#feed("asked on the direct path", now);
    return this.#feed(ask ? "asked over the relay" : "answered over the relay", now);
  }

  /**
   * Something came over the relay.
   * @param {number} now
   */
  heard(now) {
    this.#heardAt = now;
    this.#askedAt = null;
  }

  /**
   * The answer to a ping came.
   * @param {number} nonce
   * @param {number} now
   */
  ponged(nonce, now) {
    if (nonce !== this.#nonce || this.#pingedAt === null) return;
    this.rtt = now - this.#pingedAt;
    this.#pingedAt = null;
  }

  /**
   * What came over the relay was refused: it is asked again only after a while.
   * @param {number} now
   */
  fault(now) {
    return this.#feed("fault", now);
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {RouteOutput[]} */
    const out = [];
    for (const [name, at] of this.#deadlines.due(now)) {
      if (name === "patience") {
        this.#overdue = true;
        if (this.#relay) out.push(...this.#feed("patience", now));
      } else if (name === "again") {
        out.push(...this.#feed("again", now));
      } else {
        out.push(...this.#look(at, now));
      }
    }
    return out;
  }

  // --- the machine ---

  /**
   * @param {RouteInput} on
   * @param {number} now
   * @returns {RouteOutput[]}
   */
  #feed(on, now) {
    const row = ROUTE_INDEX.get(`${this.state}, ${on}`);
    if (!row) return [];
    const [, , , actions] = row;
    this.#setState(row, now);
    this.#out = [];
    for (const action of actions) Route.#ACTIONS[action](this, now);
    const out = this.#out;
    if (this.#link && (this.state === "none" || this.state === "asking")) {
      // We had gone along with the other side; by ourselves we have a direct path.
      out.push(...this.#feed("link up", now));
    }
    return out;
  }

  /**
   * @param {RouteRow} row
   * @param {number} now
   */
  #setState([, on, next, , reason], now) {
    if (next === this.state) return;
    this.state = next;
    const seconds = on === "silence" ? this.#config.silenceTimeout : this.#config.relayAfter;
    this.reason = reason.replace("{}", seconds === null ? "" : `${Number(seconds.toPrecision(6))}`);
    this.#deadlines.clearAll();
    if (next !== "asking") this.#again.reset();
    if (next === "direct") {
      this.#overdue = false;
      this.#faults.reset();
    } else if (next === "relay") {
      this.#heardAt = now;
      this.#askedAt = this.#pingedAt = null;
      this.#deadlines.set("look", now);
    }
  }

  /**
   * Is the relay still a path? It is asked when nothing was heard for a while.
   * @param {number} at
   * @param {number} now
   * @returns {RouteOutput[]}
   */
  #look(at, now) {
    const { pingInterval } = this.#config;
    if (now - at > STALL) this.#askedAt = this.#pingedAt = null;
    if (this.#askedAt !== null && this.#goneAt(this.#askedAt) <= now) return this.#feed("silence", now);
    let askAt = this.rtt === null ? now : this.#heardAt + pingInterval;
    if (this.#pingedAt !== null) askAt = Math.max(askAt, this.#pingedAt + pingInterval);
    /** @type {RouteOutput[]} */
    const out = [];
    if (askAt <= now) {
      this.#nonce++;
      this.#pingedAt = now;
      this.#askedAt ??= now;
      out.push({ kind: "Ping", nonce: this.#nonce });
      askAt = now + pingInterval;
    }
    if (this.#askedAt !== null) askAt = Math.min(askAt, this.#goneAt(this.#askedAt));
    this.#deadlines.set("look", askAt);
    return out;
  }

  /** @param {number} askedAt */
  #goneAt(askedAt) {
    // Who asks late, as a page that is slowed down, waits as long for the answer as others.
    const { pingInterval, silenceTimeout } = this.#config;
    return Math.max(this.#heardAt + silenceTimeout, askedAt + silenceTimeout - pingInterval);
  }

  // --- actions, named in the table ---

  /** @type {Record<string, (it: Route, now: number) => void>} */
  static #ACTIONS = {
    attachDirect: (it) => it.#out.push({ kind: "Attach", relay: false, ask: true }),
    answerDirect: (it) => it.#out.push({ kind: "Attach", relay: false, ask: false }),
    attachRelay: (it, now) => it.#attachRelay(now),
    answerRelay: (it) => it.#out.push({ kind: "Attach", relay: true, ask: false }),
    bePatient: (it, now) => it.#bePatient(now),
    retry: (it, now) => it.#retry(now),
    waitMore: (it, now) => it.#deadlines.set("patience", now + it.#faults.next(0)),
  };

  /** @param {number} now */
  #bePatient(now) {
    const { relayAfter } = this.#config;
    if (relayAfter !== null) this.#deadlines.set("patience", now + relayAfter);
  }

  /** @param {number} now */
  #retry(now) {
    if (this.#overdue) this.#deadlines.set("patience", now);
  }

  /** @param {number} now */
  #attachRelay(now) {
    this.#out.push({ kind: "Attach", relay: true, ask: true });
    this.#deadlines.set("again", now + this.#again.next(0));
  }
}

// --- session.js ----------------------------------------------------------------------------------

// One seat at the relay, as its client sees it: connect, join, resume, count. No I/O, no clock.
//
// A dropped socket costs nothing as long as the seat lives: both ends count what they exchange, and
// what the other end has not got is sent again. SESSION_TABLE is the whole machine: which input is
// taken in which state, and which states may follow.
//
// Data frames are not kept: they go out while there is a seat, and what of them is on its way to
// each member is counted, by what the relay says has left it.

/** Seconds that a connection may take to be made, and then the welcome to come. */
const ANSWER_TIMEOUT = 5;
/** Counted messages after which an acknowledgement is sent at once. */
const SESSION_ACK_EVERY = 16;
/** Seconds that a counted message stays unacknowledged at most. */
const SESSION_ACK_AFTER = 5;
/**
 * Bytes that a message to the relay may have: any session description fits, and the relay takes it.
 *
 * A message that the relay shuts the socket for would be sent again after each resume, for ever.
 */
const MAX_SIGNAL = 192 * 1024;
/** Bytes that a report may have; what does not fit into one goes into several. */
const MAX_REPORT = 64 * 1024;
/**
 * Seconds that a relay may take to start again, after it said that it would: until then it is tried
 * again and again soon.
 */
const RESTART_PATIENCE = 60;

/**
 * What can be done about an id that is in use, by what was asked for.
 * @type {Readonly<Record<OnConflict, string>>}
 */
const ADVICE = {
  reject: 'choose another id, or join with onConflict: "rename"',
  takeover: "to take it over, join with its resume token or a join token of its subject",
  rename: "choose a shorter one",
};

// A waiting time that comes from the relay is held to these: nothing it says makes a client hammer.
const SHORTEST_WAIT = 0.1;
const TAKEN_WAIT = 1;
// Between two tries of a relay that is being restarted; half of it to one and a half. Of the second
// in which a client is to be back, that leaves 0.4 s for the handshakes (TCP, TLS, WebSocket, join).
const RESTART_WAIT = 0.4;

/**
 * Where the session stands.
 * - joining: connected, the join was sent, the welcome is awaited
 * - seated: has a deadline of the wire's own, the keepalive, whose failure is `Session.dropped`
 * - waiting: for the time of the next try
 * @typedef {"new" | "connecting" | "joining" | "seated" | "waiting" | "closed"} SessionState
 */

/**
 * What can happen to a session: calls of its methods, and messages by their type. "received" is any
 * message, before it is looked at; one that is malformed or out of place ends there.
 * @typedef {"open" | "connected" | "connection_failed" | "dropped" | "send" | "update" | "forward"
 *   | "report" | "hurry" | "close" | "tick" | "received"
 *   | "message:welcome" | "message:joined" | "message:left" | "message:updated" | "message:signal"
 *   | "message:refused" | "message:ice_servers" | "message:notice" | "message:restart_ice"
 *   | "message:goodbye" | "message:pong" | "message:ack" | "message:forwarded" | "message:frame"} SessionInput
 */

/**
 * In `state`, `input` is taken, and one of `next` follows.
 * @typedef {[state: SessionState, input: SessionInput, next: SessionState[]]} SessionRow
 */

/**
 * What each state takes.
 *
 * A call that is not listed throws `UnexpectedInput`; a message that is not listed is the relay's
 * error and treated like a malformed one. A state that is listed as its own successor may stay.
 * @type {readonly SessionRow[]}
 */
const SESSION_TABLE = [
  // <generated: session-table>
  ["new", "open", ["connecting"]],
  ["new", "close", ["closed"]],
  ["connecting", "connected", ["joining"]],
  ["connecting", "connection_failed", ["waiting"]],
  ["connecting", "send", ["connecting"]],
  ["connecting", "update", ["connecting"]],
  ["connecting", "forward", ["connecting"]],
  ["connecting", "report", ["connecting"]],
  ["connecting", "hurry", ["connecting"]],
  ["connecting", "tick", ["connecting", "waiting"]],
  ["connecting", "close", ["closed"]],
  ["joining", "dropped", ["waiting"]],
  ["joining", "send", ["joining"]],
  ["joining", "update", ["joining"]],
  ["joining", "forward", ["joining"]],
  ["joining", "report", ["joining"]],
  ["joining", "hurry", ["joining"]],
  ["joining", "tick", ["joining", "waiting"]],
  ["joining", "close", ["closed"]],
  ["joining", "received", ["waiting"]],
  ["joining", "message:welcome", ["seated", "closed"]],
  ["joining", "message:refused", ["waiting", "closed"]],
  ["joining", "message:goodbye", ["waiting", "closed"]],
  ["seated", "dropped", ["waiting"]],
  ["seated", "send", ["seated"]],
  ["seated", "update", ["seated"]],
  ["seated", "forward", ["seated"]],
  ["seated", "report", ["seated"]],
  ["seated", "hurry", ["seated"]],
  ["seated", "tick", ["seated"]],
  ["seated", "close", ["closed"]],
  ["seated", "received", ["waiting"]],
  ["seated", "message:joined", ["seated"]],
  ["seated", "message:left", ["seated"]],
  ["seated", "message:updated", ["seated"]],
  ["seated", "message:signal", ["seated"]],
  ["seated", "message:refused", ["seated"]],
  ["seated", "message:ice_servers", ["seated"]],
  ["seated", "message:notice", ["seated"]],
  ["seated", "message:restart_ice", ["seated"]],
  ["seated", "message:goodbye", ["waiting", "closed"]],
  ["seated", "message:pong", ["seated"]],
  ["seated", "message:ack", ["seated"]],
  ["seated", "message:forwarded", ["seated"]],
  ["seated", "message:frame", ["seated"]],
  ["waiting", "send", ["waiting"]],
  ["waiting", "update", ["waiting"]],
  ["waiting", "forward", ["waiting"]],
  ["waiting", "report", ["waiting"]],
  ["waiting", "hurry", ["connecting"]],
  ["waiting", "tick", ["connecting", "waiting"]],
  ["waiting", "close", ["closed"]],
  // </generated>
];

/** @type {ReadonlyMap<string, SessionState[]>} */
const SESSION_INDEX = new Map(SESSION_TABLE.map(([state, input, next]) => [`${state}, ${input}`, next]));

/** @type {Readonly<Record<RelayMessage["kind"], SessionInput>>} */
const SESSION_INPUTS = {
  Welcome: "message:welcome",
  MemberJoined: "message:joined",
  MemberLeft: "message:left",
  MemberUpdated: "message:updated",
  SignalIn: "message:signal",
  Refused: "message:refused",
  IceServers: "message:ice_servers",
  Forwarded: "message:forwarded",
  Notice: "message:notice",
  RestartIce: "message:restart_ice",
  Goodbye: "message:goodbye",
  Pong: "message:pong",
  Ack: "message:ack",
};

/**
 * What a session wants done.
 * - Connect: make a connection; answer with `Session.connected` or `Session.connectionFailed`
 * - Transmit: send this text on the connection; a join has secrets in it
 * - TransmitFrame: send these bytes on the connection; each `Transmit` that comes before they are
 *   sent goes first
 * - Disconnect: close the connection, or give the attempt up; nothing of it may be fed in from now
 *   on. What was to be transmitted before goes out first, as far as that takes no more than a second
 * - Tell: tell the user of the transport; the first thing told is the first `Welcome`
 * - Lost: tell the user that a seat's connection is gone, and in how many seconds it is tried next;
 *   told once, until the next `Welcome`
 * - Fail: the session is over for good
 * @typedef {{kind: "Connect"}
 *   | {kind: "Transmit", data: string}
 *   | {kind: "TransmitFrame", data: Uint8Array}
 *   | {kind: "Disconnect"}
 *   | {kind: "Tell", event: SessionEvent}
 *   | {kind: "Lost", reason: string, retryIn: number}
 *   | {kind: "Fail", error: MeshError}} SessionOutput
 */

/** @typedef {Exclude<RelayMessage, {kind: "Ack" | "Forwarded" | "Goodbye" | "Pong"}> | FrameIn | ForwardRoom} SessionEvent */

/**
 * A counted message that the relay has not acknowledged.
 * @typedef {{data: string, isUpdate: boolean}} PendingMessage
 */

/**
 * What a session takes of the settings (MeshConfig). Times are seconds.
 * @typedef {object} SessionConfig
 * @property {number} signalingRetryFirst
 * @property {number} signalingRetryMax
 * @property {number} maxPendingSignals
 */

/**
 * The client's end of one seat. `open` comes first; every method returns what is to be done, in
 * order.
 */
class Session {
  #config;
  #random;
  #service;
  /** @type {SessionState} */
  #state = "new";
  /** @type {SessionInput} */
  #input = "open";
  /** @type {Deadlines<"connecting" | "joining" | "waiting" | "ack">} */
  #deadlines = new Deadlines();
  #backoff;
  #wait = 0;
  #seatedAt = 0;
  /** Until when a relay that said that it restarts is tried again soon. */
  #restartsUntil = -Infinity;
  /** @type {MeshError | null} */
  #lastFailure = null;
  /** Set by `open`, which every other input needs. @type {Join | null} */
  #ownJoin = null;
  #welcomed = false;
  #lossTold = false;
  // relay -> client
  #received = 0;
  #receivedAcked = 0;
  // client -> relay: pending[0] is number acked + 1; transmitted is the highest number that was on a
  // wire; the join that is under way has the updates up to number inJoin in it.
  /** @type {PendingMessage[]} */
  #pending = [];
  #acked = 0;
  #transmitted = 0;
  #inJoin = 0;
  // Data: what may be on its way to one member, and the bytes that are, by peer id.
  #window = 0;
  #wantsReports = false;
  /** @type {Map<string, number>} */
  #underWay = new Map();

  /**
   * @param {SessionConfig} config
   * @param {object} options
   * @param {() => number} options.random gives numbers in [0, 1), for the jitter of waiting times
   * @param {string} [options.service] what error texts call the other end
   */
  constructor(config, { random, service = "the relay" }) {
    this.#config = config;
    this.#random = random;
    this.#service = service;
    this.#backoff = new Backoff(config.signalingRetryFirst, config.signalingRetryMax);
  }

  /** Where the session stands. */
  get state() {
    return this.#state;
  }

  /** Why the latest try failed; null after a success, or when none was made. */
  get lastFailure() {
    return this.#lastFailure;
  }

  /** How many counted messages the relay has not acknowledged. */
  get pending() {
    return this.#pending.length;
  }

  /** When to call `tick`, or null. */
  nextDeadline() {
    return this.#deadlines.next();
  }

  // --- what the user does ---

  /**
   * Begin to take a seat. Throws `InvalidData` when `join` does not fit the schema.
   * @param {Join} join its `session`, `received` and `attempt` are the session's own
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  open(join, now) {
    this.#take("open");
    const first = { ...join, session: null, received: 0, attempt: 0 };
    this.#checked(first);
    this.#ownJoin = first;
    this.#setState("connecting", now);
    return [{ kind: "Connect" }];
  }

  /**
   * Send a signal, or keep it until there is a seat.
   *
   * Throws, and changes nothing: `SignalingBacklog` when `maxPendingSignals` are unacknowledged,
   * `InvalidData` when it does not fit the schema, `MessageTooLarge` when it has more than
   * `MAX_SIGNAL` bytes.
   * @param {SignalOut} signal
   */
  send(signal) {
    this.#take("send");
    return this.#enqueue({ data: this.#checked(signal), isUpdate: false });
  }

  /**
   * Change the name or the metadata; null leaves it as it is. Throws like `send`.
   * @param {string | null} name
   * @param {Metadata | null} metadata
   */
  update(name, metadata) {
    this.#take("update");
    if (name === null && metadata === null) return [];
    const data = this.#checked({ kind: "Update", name, metadata });
    const outputs = this.#enqueue({ data, isUpdate: true });
    // A later join carries the newest values.
    const join = this.#join;
    this.#ownJoin = { ...join, name: name ?? join.name, metadata: metadata ?? join.metadata };
    return outputs;
  }

  /**
   * Bytes of data that may go to this member now; 0 without a seat.
   *
   * When it was below half of the window, a `ForwardRoom` is told once it is not any more. After
   * each `Welcome` it is the whole window.
   * @param {string} to
   */
  forwardRoom(to) {
    if (this.#state !== "seated") return 0;
    return Math.max(0, this.#window - (this.#underWay.get(to) ?? 0));
  }

  /**
   * Send a data frame; dropped without a seat, or `FORWARD_SLACK` beyond the window.
   *
   * Throws `InvalidData` when it is empty, `MessageTooLarge` for more than `MAX_FORWARD` bytes.
   * @param {string} to
   * @param {string} toIncarnation
   * @param {Uint8Array} frame
   * @returns {SessionOutput[]}
   */
  forward(to, toIncarnation, frame) {
    this.#take("forward");
    const data = encodeForward(to, toIncarnation, frame);
    const underWay = (this.#underWay.get(to) ?? 0) + data.length;
    if (this.#state !== "seated" || !this.#window || underWay > this.#window + FORWARD_SLACK) return [];
    this.#underWay.set(to, underWay);
    return [{ kind: "TransmitFrame", data }];
  }

  /**
   * Tell how these links stand; dropped without a seat, or where no reports are wanted.
   *
   * Throws `InvalidData` when one does not fit the schema.
   * @param {readonly LinkReport[]} links
   * @returns {SessionOutput[]}
   */
  report(links) {
    this.#take("report");
    if (this.#state !== "seated" || !this.#wantsReports || !links.length) return [];
    /** @type {Report} */
    const report = { kind: "Report", links: [...links] };
    if (links.length > MAX_REPORTS || (links.length > 1 && utf8Length(encode(report)) > MAX_REPORT)) {
      const half = links.length >> 1;
      return [...this.report(links.slice(0, half)), ...this.report(links.slice(half))];
    }
    return [{ kind: "Transmit", data: this.#checked(report) }];
  }

  /**
   * The network has changed: what waits is tried now, and what is being tried is begun anew.
   *
   * A connection that is there is left alone; whether it still works, its owner finds out.
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  hurry(now) {
    this.#take("hurry");
    if (this.#state !== "waiting" && this.#state !== "connecting") return [];
    const isTrying = this.#state === "connecting";
    this.#setState("connecting", now);
    return isTrying ? [{ kind: "Disconnect" }, { kind: "Connect" }] : [{ kind: "Connect" }];
  }

  /**
   * Give the seat up, as far as there is a connection to say so on.
   * @param {number} now
   */
  close(now) {
    this.#take("close");
    /** @type {SessionOutput[]} */
    const outputs = [];
    const isConnected = this.#state === "joining" || this.#state === "seated";
    if (isConnected) outputs.push({ kind: "Transmit", data: encode({ kind: "Leave" }) });
    if (isConnected || this.#state === "connecting") outputs.push({ kind: "Disconnect" });
    this.#setState("closed", now);
    return outputs;
  }

  // --- what the connection does ---

  /**
   * The connection that `Connect` asked for is there.
   *
   * Throws `InvalidData`, and changes nothing, when the token can't be one.
   * @param {number} now
   * @param {string | null} [joinToken] for this join alone
   * @returns {SessionOutput[]}
   */
  connected(now, joinToken = null) {
    this.#take("connected");
    const join = { ...this.#join, received: this.#received, attempt: this.#join.attempt + 1 };
    const data = this.#checked(joinToken === null ? join : { ...join, joinToken });
    this.#ownJoin = join;
    this.#restartsUntil = -Infinity;
    this.#receivedAcked = this.#received;
    this.#inJoin = this.#acked + this.#pending.length;
    this.#setState("joining", now);
    return [{ kind: "Transmit", data }];
  }

  /**
   * It can't be made.
   * @param {string} reason a text that a person can act on
   * @param {number} now
   */
  connectionFailed(reason, now) {
    this.#take("connection_failed");
    return this.#lose(reason, now, { wait: this.#restartWait(now) });
  }

  /**
   * The connection is gone.
   * @param {string} reason
   * @param {number} now
   */
  dropped(reason, now) {
    this.#take("dropped");
    return this.#lose(reason, now);
  }

  /**
   * The relay said something.
   *
   * What is malformed or out of place changes nothing but that this connection is given up and
   * another one made, with a growing wait.
   * @param {string | Uint8Array} data
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  received(data, now) {
    this.#take("received");
    try {
      if (typeof data !== "string" && data[0] === MARK) return this.#frame(data);
      return this.#heard(decodeRelay(data), now);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#input = "received";
      return [{ kind: "Disconnect" }, ...this.#lose(error.message, now)];
    }
  }

  /**
   * Time has passed; call it at `nextDeadline`, or at any other time.
   * @param {number} now
   */
  tick(now) {
    this.#take("tick");
    /** @type {SessionOutput[]} */
    const outputs = [];
    for (const [name] of this.#deadlines.due(now)) {
      if (name === "waiting") {
        this.#setState("connecting", now);
        outputs.push({ kind: "Connect" });
      } else if (name === "ack") {
        outputs.push(this.#acknowledge());
      } else {
        const what = name === "connecting" ? "accept a connection" : "answer the join";
        const reason = `${this.#service} did not ${what} within ${ANSWER_TIMEOUT} seconds`;
        const lost = this.#lose(reason, now, { wait: this.#restartWait(now) });
        outputs.push({ kind: "Disconnect" }, ...lost);
      }
    }
    return outputs;
  }

  // --- the messages ---

  /** @param {SessionInput} kind */
  #place(kind) {
    if (!SESSION_INDEX.has(`${this.#state}, ${kind}`)) {
      const text = `${this.#service} sent ${repr(kind.slice("message:".length))} to a client that is ${this.#state}`;
      throw new ProtocolError(text, { code: "out_of_place" });
    }
    this.#input = kind;
  }

  /**
   * @param {Uint8Array} data
   * @returns {SessionOutput[]}
   */
  #frame(data) {
    this.#place("message:frame");
    return [{ kind: "Tell", event: decodeForward(data) }];
  }

  /**
   * @param {RelayMessage} message
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #heard(message, now) {
    this.#place(SESSION_INPUTS[message.kind]);
    switch (message.kind) {
      case "Welcome":
        return this.#welcome(message, now);
      case "IceServers":
        return [{ kind: "Tell", event: message }];
      case "Ack":
        this.#trim(message.received);
        return [];
      case "Forwarded":
        return this.#forwarded(message);
      case "Pong":
        return [];
      case "Goodbye":
        return this.#goodbye(message, now);
      case "Refused":
        return this.#state === "joining" ? this.#refused(message, now) : this.#counted(message, now);
      default:
        return this.#counted(message, now);
    }
  }

  /**
   * @param {Welcome} welcome
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #welcome(welcome, now) {
    const join = this.#join;
    if (welcome.version !== VERSION) {
      const text = `${this.#service} speaks version ${welcome.version} of the protocol, this client ${VERSION}`;
      return this.#fail(refusal("unsupported_version", text, { field: "$.version" }), now);
    }
    for (const [name, value, isOurs] of /** @type {const} */ ([
      ["room", welcome.room, welcome.room === join.room],
      ["incarnation", welcome.incarnation, welcome.incarnation === join.incarnation],
      ["peer_id", welcome.peerId, welcome.peerId === join.peerId || join.onConflict === "rename"],
      ["session", welcome.session, !welcome.resumed || welcome.session === join.session],
    ])) {
      if (isOurs) continue;
      const text = `${this.#service} welcomed somebody else: ${name} is ${value === null ? value : repr(value)}`;
      throw new ProtocolError(text, { code: "out_of_place", field: `$.${name}` });
    }
    // Also when not resumed: how far the count before this one got, or 0 when that is unknown.
    if (welcome.resumed || welcome.received) this.#trim(welcome.received);
    if (!welcome.resumed) {
      // The addressees of signals may well be there still, so those go on, even if one or the other
      // comes twice after a relay that lost its memory; an update is in the join.
      const inJoin = this.#inJoin - this.#acked;
      this.#pending = this.#pending.filter(({ isUpdate }, place) => place >= inJoin || !isUpdate);
      this.#acked = 0;
      this.#received = this.#receivedAcked = 0;
    }
    this.#transmitted = this.#acked + this.#pending.length;
    this.#window = welcome.forwardWindow;
    this.#wantsReports = welcome.reportInterval > 0;
    this.#underWay.clear();
    const { peerId, token, session } = welcome;
    // Who has an id keeps it or ends: nobody's links survive another one.
    this.#ownJoin = { ...join, peerId, onConflict: "reject", token, session };
    this.#welcomed = true;
    this.#lossTold = false;
    this.#lastFailure = null;
    this.#seatedAt = now;
    this.#setState("seated", now);
    const pending = this.#pending.map(({ data }) => ({ kind: /** @type {const} */ ("Transmit"), data }));
    return [{ kind: "Tell", event: welcome }, ...pending];
  }

  /**
   * @param {Extract<SessionEvent, RelayMessage>} message
   * @param {number} now
   */
  #counted(message, now) {
    this.#received++;
    /** @type {SessionOutput[]} */
    const outputs = [{ kind: "Tell", event: message }];
    if (this.#received - this.#receivedAcked >= SESSION_ACK_EVERY) outputs.push(this.#acknowledge());
    else if (this.#deadlines.get("ack") === null) this.#deadlines.set("ack", now + SESSION_ACK_AFTER);
    return outputs;
  }

  /**
   * @param {Forwarded} message
   * @returns {SessionOutput[]}
   */
  #forwarded({ to, size }) {
    const before = this.#underWay.get(to) ?? 0;
    const after = before - size;
    if (after < 0) {
      const text = `${this.#service} has forwarded ${size} bytes to ${repr(to)}, of ${before} on their way`;
      throw new ProtocolError(text, { code: "bad_forwarded", field: "$.size" });
    }
    if (after) this.#underWay.set(to, after);
    else this.#underWay.delete(to);
    // Room is what is left of the window: below half of it, now not any more.
    const half = Math.floor(this.#window / 2);
    return after <= half && half < before ? [{ kind: "Tell", event: { kind: "ForwardRoom", peerId: to } }] : [];
  }

  /**
   * The join was refused.
   * @param {Refused} refused
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #refused({ code, text, field, retryAfter }, now) {
    if (code === "peer_id_taken") {
      // Who had it before joins with "reject" whatever was asked for, and can do nothing.
      const advice = ADVICE[this.#join.onConflict];
      text += this.#welcomed ? "; this process lost it while it was away" : `; ${advice}`;
    }
    const error = refusal(code, text, { field, retryAfter });
    if (code === "peer_id_taken" && retryAfter !== null) {
      // The holder's socket is down: it comes back, or its seat runs out.
      const wait = Math.min(Math.max(retryAfter, SHORTEST_WAIT), TAKEN_WAIT);
      return [{ kind: "Disconnect" }, ...this.#lose(error, now, { wait })];
    }
    if (code === "rate_limited" || code === "unavailable") {
      return [{ kind: "Disconnect" }, ...this.#lose(error, now, { after: retryAfter ?? 0 })];
    }
    return this.#fail(error, now);
  }

  /**
   * @param {Goodbye} goodbye
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #goodbye({ reason, retryAfter }, now) {
    const peerId = repr(this.#join.peerId);
    if (reason === "replaced") {
      return this.#fail(new IdentityReplaced(`a newer process has the peer id ${peerId}`, { reason }), now);
    }
    if (reason === "removed") {
      const text = `the operator of ${this.#service} removed ${peerId} from the room`;
      return this.#fail(new Removed(text, { reason }), now);
    }
    let wait = null;
    if (retryAfter !== null) {
      const whole = Math.min(Math.max(retryAfter, SHORTEST_WAIT), this.#config.signalingRetryMax);
      wait = whole * (0.5 + this.#random());
      if (reason === "shutdown") this.#restartsUntil = now + RESTART_PATIENCE;
    }
    return [{ kind: "Disconnect" }, ...this.#lose(`${this.#service} said goodbye (${reason})`, now, { wait })];
  }

  // --- the parts ---

  get #join() {
    return /** @type {Join} */ (this.#ownJoin);
  }

  /** @param {SessionInput} name */
  #take(name) {
    if (!SESSION_INDEX.has(`${this.#state}, ${name}`)) {
      throw new UnexpectedInput(`the session is ${this.#state}: it takes no ${repr(name)}`);
    }
    this.#input = name;
  }

  /**
   * @param {SessionState} state
   * @param {number} now
   */
  #setState(state, now) {
    if (!SESSION_INDEX.get(`${this.#state}, ${this.#input}`)?.includes(state)) {
      throw new Error(`${this.#state} --${this.#input}--> ${state} is not in the table`);
    }
    this.#state = state;
    this.#deadlines.clearAll();
    if (state === "connecting" || state === "joining") this.#deadlines.set(state, now + ANSWER_TIMEOUT);
  }

  /**
   * The wait before the next try of a relay that is being restarted; null when it is not.
   * @param {number} now
   */
  #restartWait(now) {
    if (now >= this.#restartsUntil) return null;
    return Math.min(RESTART_WAIT * (0.5 + this.#random()), this.#config.signalingRetryMax);
  }

  /**
   * There is no connection now.
   * @param {string | MeshError} reason
   * @param {number} now
   * @param {object} [options]
   * @param {number | null} [options.wait] before the next try, by default the backoff's and `after`
   * @param {number} [options.after] comes from the relay
   * @returns {SessionOutput[]}
   */
  #lose(reason, now, { wait = null, after = 0 } = {}) {
    // A seat that did not last as long as it was waited for is no success: the wait grows.
    if (this.#state === "seated" && now - this.#seatedAt >= this.#wait) this.#backoff.reset();
    this.#wait = wait ?? this.#backoff.next(this.#random()) + Math.min(after, this.#config.signalingRetryMax);
    const error = typeof reason === "string" ? new SignalingUnavailable(reason) : reason;
    this.#lastFailure = error;
    this.#setState("waiting", now);
    this.#deadlines.set("waiting", now + this.#wait);
    if (!this.#welcomed || this.#lossTold) return [];
    this.#lossTold = true;
    return [{ kind: "Lost", reason: error.message, retryIn: this.#wait }];
  }

  /**
   * @param {MeshError} error
   * @param {number} now
   * @returns {SessionOutput[]}
   */
  #fail(error, now) {
    this.#lastFailure = error;
    this.#setState("closed", now);
    return [{ kind: "Disconnect" }, { kind: "Fail", error }];
  }

  /**
   * The text of `message`, known to fit what the relay checks it with.
   *
   * What the relay can't decode it can't count, and the counts of both ends would differ.
   * @param {Join | SignalOut | Update | Report} message
   */
  #checked(message) {
    // What JSON would leave out without a word.
    if ("metadata" in message) encodeValue(message.metadata);
    let data;
    try {
      data = encode(message);
      decodeClient(data);
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof ProtocolError)) throw error;
      throw new InvalidData(`can't be sent to ${this.#service}: ${error.message}`);
    }
    const size = utf8Length(data);
    if (size > MAX_SIGNAL) {
      throw new MessageTooLarge(`a message to ${this.#service} has ${size} bytes, the limit is ${MAX_SIGNAL}`);
    }
    return data;
  }

  /**
   * @param {PendingMessage} pending
   * @returns {SessionOutput[]}
   */
  #enqueue(pending) {
    const limit = this.#config.maxPendingSignals;
    if (this.#pending.length >= limit) {
      throw new SignalingBacklog(
        `${limit} signals wait for ${this.#service} already (config.maxPendingSignals); ` +
          (this.#lastFailure?.message ?? "it has not acknowledged them yet"),
      );
    }
    this.#pending.push(pending);
    if (this.#state !== "seated") return [];
    this.#transmitted++;
    return [{ kind: "Transmit", data: pending.data }];
  }

  /**
   * The relay has the first so many counted messages.
   * @param {number} received
   */
  #trim(received) {
    if (received < this.#acked || received > this.#transmitted) {
      throw new ProtocolError(
        `${this.#service} acknowledged ${received} messages, which is not between ` +
          `${this.#acked} and ${this.#transmitted}`,
        { code: "bad_ack", field: "$.received" },
      );
    }
    this.#pending.splice(0, received - this.#acked);
    this.#acked = received;
  }

  /** @returns {SessionOutput} */
  #acknowledge() {
    this.#deadlines.clear("ack");
    this.#receivedAcked = this.#received;
    return { kind: "Transmit", data: encode({ kind: "Ack", received: this.#received }) };
  }
}

// --- config.js -----------------------------------------------------------------------------------

// Every limit and every timeout, in one place: the same as meshpeer's config.MeshConfig, without what
// a page has no say in (the interfaces, the addresses and the ports of its machine).

/**
 * One STUN or TURN server as W3C WebRTC's RTCIceServer has it.
 * @typedef {{urls: string | readonly string[], username?: string | null, credential?: string | null}} IceServerInit
 */

/**
 * How a `PeerManager` behaves. Times are seconds, sizes are bytes, unless a name says otherwise.
 * @typedef {object} MeshSettings
 * @property {OnConflict} onConflict  an id that is in use: refuse to start, take it over (same resume
 *   token), or rename
 * @property {readonly IceServerInit[]} iceServers  STUN and TURN servers, besides those that the relay
 *   names; nothing is contacted that neither of them named
 * @property {"all" | "relay"} iceTransportPolicy  "relay": only candidates of TURN servers are used,
 *   so that no address of ours is shown (W3C WebRTC, RTCIceTransportPolicy)
 * @property {number} connectTimeout  a connection attempt, and an ICE restart that was answered, that
 *   takes longer has failed
 * @property {number} candidatesTimeout  the other side is taken to have sent its last candidate this
 *   long after the latest
 * @property {number} restartTimeout  an ICE restart that is not answered within this is given up, and
 *   begun again if need be
 * @property {number} upgradeFirst  the first wait before a better path than TURN is looked for; it
 *   doubles
 * @property {number} upgradeMax  the longest wait between two such tries
 * @property {number} retryFirst  the first wait before another attempt, after two have failed; it
 *   doubles
 * @property {number} retryMax  the longest wait between two attempts
 * @property {number} pingInterval  a side that sent nothing for this long on a connected link pings
 * @property {number} silenceTimeout  a connected link on which nothing was heard for this long is
 *   "disconnected"
 * @property {number} disconnectedTimeout  a disconnected link that is not heard of for this long, in
 *   spite of ICE restarts, gets a new connection
 * @property {number} stableAfter  a connection that held for this long has earned a fresh start of
 *   failures and waits
 * @property {number} joinTimeout  how long `PeerManager.start` tries to enter the room
 * @property {number} signalingRetryFirst  the first wait before the relay is tried again (full
 *   jitter); it doubles
 * @property {number} signalingRetryMax  the longest wait between two tries
 * @property {number} closeTimeout  the longest that `PeerManager.close` waits for others
 * @property {number} maxMessageSize  the largest message that is sent or accepted, after encoding
 * @property {number} sendWindow  how much one channel to one peer may have that was accepted and not
 *   acknowledged, before `Peer.send` waits
 * @property {number} receiveWindow  how much of its large messages a peer may send before the
 *   application has taken them: what does not fit into `channelWindow`. Also how much of its plain
 *   channels is kept unread
 * @property {number} channelWindow  how much a peer may send on each channel before the application
 *   has taken it
 * @property {number} maxChannels  how many channels of messages a peer may use towards us
 * @property {Readonly<Record<string, Priority>>} channelPriorities  how the channels share a path when
 *   all have something to send: "very-low", "low" (when not named), "medium", "high"; each gets twice
 *   the share of the one below
 * @property {number} ackDelay  the longest that a received message waits for its acknowledgement
 * @property {number | null} relayAfter  data flows over the relay when there was no direct path for so
 *   long; 0: from the first moment, until there is one; null: never
 * @property {number} sendBuffer  how much `Channel.send` leaves in the buffer of its plain channel
 *   before it waits
 * @property {number} maxPendingEvents  how many events a slow reader of `PeerManager.events` may be
 *   behind before it is ended
 * @property {number} maxPendingSignals  how many signals are kept while the relay is away
 */

/** @type {MeshSettings} */
const MESH_DEFAULTS = {
  // <generated: config>
  onConflict: "reject",
  iceServers: [],
  iceTransportPolicy: "all",
  connectTimeout: 8,
  candidatesTimeout: 5,
  restartTimeout: 5,
  upgradeFirst: 5,
  upgradeMax: 300,
  retryFirst: 1,
  retryMax: 30,
  pingInterval: 1,
  silenceTimeout: 2.5,
  disconnectedTimeout: 15,
  stableAfter: 5,
  joinTimeout: 10,
  signalingRetryFirst: 0.5,
  signalingRetryMax: 30,
  closeTimeout: 2,
  maxMessageSize: 16777216,
  sendWindow: 16777216,
  receiveWindow: 16777216,
  channelWindow: 524288,
  maxChannels: 32,
  channelPriorities: {"meshpeer.file": "very-low"},
  ackDelay: 0.05,
  relayAfter: 3,
  sendBuffer: 1048576,
  maxPendingEvents: 10000,
  maxPendingSignals: 1000,
  // </generated>
};

/**
 * The least and the most of each.
 * @type {readonly [name: keyof MeshSettings, low: number, high: number, isWhole?: boolean][]}
 */
const MESH_RANGES = [
  ["connectTimeout", 0.05, 3600],
  ["candidatesTimeout", 0.05, 3600],
  ["restartTimeout", 0.05, 3600],
  ["upgradeFirst", 0.05, 3600],
  ["upgradeMax", 0.05, 3600],
  ["pingInterval", 0.05, 3600],
  ["silenceTimeout", 0.05, 3600],
  ["disconnectedTimeout", 0.05, 3600],
  ["retryFirst", 0.01, 3600],
  ["retryMax", 0.01, 3600],
  ["signalingRetryFirst", 0.01, 3600],
  ["signalingRetryMax", 0.01, 3600],
  ["stableAfter", 0, 3600],
  ["joinTimeout", 0.1, 3600],
  ["closeTimeout", 0, 60],
  ["maxMessageSize", 1024, 2 ** 30, true],
  ["receiveWindow", 64 * 1024, 2 ** 32, true],
  ["sendWindow", 16 * 1024, 2 ** 32, true],
  ["channelWindow", 32 * 1024, 2 ** 30, true],
  ["maxChannels", 2, 200, true],
  ["sendBuffer", 16 * 1024, 2 ** 30, true],
  ["ackDelay", 0, 10],
  ["relayAfter", 0, 3600],
  ["maxPendingEvents", 10, 10_000_000, true],
  // The relay acknowledges every 32nd: fewer would wait for each other for ever.
  ["maxPendingSignals", 100, 1_000_000, true],
];

/** @param {unknown} value */
const shownSetting = (value) => (typeof value === "string" ? repr(value) : String(value)).slice(0, 100);

/**
 * All settings, those that are not given with their defaults; frozen. Throws `ConfigError` that names
 * the field, the value and the range.
 */
class MeshConfig {
  /** @param {Partial<MeshSettings>} [settings] */
  constructor(settings = {}) {
    if (typeof settings !== "object" || settings === null) {
      throw new ConfigError(`the config must be an object with settings, not ${shownSetting(settings)}`);
    }
    for (const name of Object.keys(settings)) {
      if (!Object.hasOwn(MESH_DEFAULTS, name)) {
        throw new ConfigError(`MeshConfig has no ${repr(name)} in a browser; it has ${Object.keys(MESH_DEFAULTS).join(", ")}`);
      }
    }
    const given = Object.entries(settings).filter(([, value]) => value !== undefined);
    const all = /** @type {MeshSettings} */ ({ ...MESH_DEFAULTS, ...Object.fromEntries(given) });
    checkSettings(all);
    this.onConflict = all.onConflict;
    /** @type {readonly IceServer[]} */
    this.iceServers = Object.freeze(all.iceServers.map(iceServerOf));
    this.iceTransportPolicy = all.iceTransportPolicy;
    this.connectTimeout = all.connectTimeout;
    this.candidatesTimeout = all.candidatesTimeout;
    this.restartTimeout = all.restartTimeout;
    this.upgradeFirst = all.upgradeFirst;
    this.upgradeMax = all.upgradeMax;
    this.retryFirst = all.retryFirst;
    this.retryMax = all.retryMax;
    this.pingInterval = all.pingInterval;
    this.silenceTimeout = all.silenceTimeout;
    this.disconnectedTimeout = all.disconnectedTimeout;
    this.stableAfter = all.stableAfter;
    this.joinTimeout = all.joinTimeout;
    this.signalingRetryFirst = all.signalingRetryFirst;
    this.signalingRetryMax = all.signalingRetryMax;
    this.closeTimeout = all.closeTimeout;
    this.maxMessageSize = all.maxMessageSize;
    this.sendWindow = all.sendWindow;
    this.receiveWindow = all.receiveWindow;
    this.channelWindow = all.channelWindow;
    this.maxChannels = all.maxChannels;
    this.channelPriorities = Object.freeze({ ...all.channelPriorities });
    this.ackDelay = all.ackDelay;
    this.relayAfter = all.relayAfter;
    this.sendBuffer = all.sendBuffer;
    this.maxPendingEvents = all.maxPendingEvents;
    this.maxPendingSignals = all.maxPendingSignals;
    Object.freeze(this);
  }
}

/** @param {MeshSettings} settings */
function checkSettings(settings) {
  if (!["reject", "takeover", "rename"].includes(settings.onConflict)) {
    throw new ConfigError(
      `MeshConfig.onConflict must be 'reject', 'takeover' or 'rename', not ${shownSetting(settings.onConflict)}`,
    );
  }
  if (!["all", "relay"].includes(settings.iceTransportPolicy)) {
    throw new ConfigError(
      `MeshConfig.iceTransportPolicy must be 'all' or 'relay', not ${shownSetting(settings.iceTransportPolicy)}`,
    );
  }
  if (!Array.isArray(settings.iceServers)) {
    throw new ConfigError(`MeshConfig.iceServers must be an array of servers, not ${typeof settings.iceServers}`);
  }
  for (const [name, low, high, isWhole = false] of MESH_RANGES) {
    const value = settings[name];
    if (value === null && name === "relayAfter") continue;
    // NaN is in no range.
    if (typeof value === "number" && value >= low && value <= high && (!isWhole || Number.isInteger(value))) continue;
    const what = isWhole ? "a whole number between" : "between";
    throw new ConfigError(`MeshConfig.${name} must be ${what} ${low} and ${high}, not ${shownSetting(value)}`);
  }
  const { channelPriorities, pingInterval, silenceTimeout, maxMessageSize, receiveWindow } = settings;
  if (typeof channelPriorities !== "object" || channelPriorities === null || Array.isArray(channelPriorities)) {
    throw new ConfigError(
      `MeshConfig.channelPriorities must map names of channels to priorities, not ${shownSetting(channelPriorities)}`,
    );
  }
  for (const [channel, priority] of Object.entries(channelPriorities)) {
    if (Object.hasOwn(PRIORITIES, priority)) continue;
    const names = Object.keys(PRIORITIES).join(", ");
    throw new ConfigError(
      `MeshConfig.channelPriorities[${repr(channel)}] must be one of ${names}, not ${shownSetting(priority)}`,
    );
  }
  if (silenceTimeout <= pingInterval) {
    throw new ConfigError(
      `MeshConfig.silenceTimeout (${silenceTimeout}) must be longer than pingInterval (${pingInterval}), ` +
        "or a quiet link is never connected",
    );
  }
  if (maxMessageSize > receiveWindow) {
    throw new ConfigError(
      `MeshConfig.maxMessageSize (${maxMessageSize}) must fit into receiveWindow (${receiveWindow})`,
    );
  }
}

/**
 * @param {IceServerInit} server
 * @returns {IceServer}
 */
function iceServerOf(server) {
  const { urls: given, username = null, credential = null } = server ?? {};
  const urls = typeof given === "string" ? [given] : given;
  if (!Array.isArray(urls) || !urls.length) {
    throw new ConfigError("MeshConfig.iceServers: each must have urls, one address or several");
  }
  for (const [name, value] of /** @type {const} */ ([["username", username], ["credential", credential]])) {
    // Not its value, which may be a secret.
    if (value !== null && typeof value !== "string") throw new ConfigError(`MeshConfig.iceServers: ${name} must be a text`);
  }
  for (const url of urls) {
    if (typeof url !== "string" || !/^(?:stun|turns?):/.test(url)) {
      throw new ConfigError(
        `MeshConfig.iceServers: urls must begin with stun:, turn: or turns:, not ${shownSetting(url)}`,
      );
    }
    if (url.startsWith("turn") && (username === null || credential === null)) {
      throw new ConfigError(`MeshConfig.iceServers: username and credential must be given for ${repr(url)}`);
    }
  }
  return { kind: "IceServer", urls: [...urls], username, credential };
}

// --- streams.js ----------------------------------------------------------------------------------

// What waits and wakes: a bell, deadlines with an AbortSignal, async iterators that are fed, turns of
// the event loop. The same as meshpeer's streams.py and alarm.py.

/**
 * Tell the page of an error that nobody else is told: its `error` event, and the console.
 * @param {unknown} error
 */
function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

/** Wakes everybody who waits. Who waits looks himself what has changed. */
class Bell {
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /** Wake all that wait now. */
  ring() {
    if (!this.#waiting.size) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  /**
   * Wait for the next `ring`; throws the reason of `signal` when that is aborted first.
   * @param {AbortSignal | null} [signal]
   * @returns {Promise<void>}
   */
  wait(signal = null) {
    return new Promise((resolve, reject) => {
      if (signal === null) {
        this.#waiting.add(resolve);
        return;
      }
      if (signal.aborted) {
        reject(signal.reason);
        return;
      }
      const wake = () => {
        signal.removeEventListener("abort", abort);
        resolve();
      };
      const abort = () => {
        this.#waiting.delete(wake);
        reject(signal.reason);
      };
      signal.addEventListener("abort", abort, { once: true });
      this.#waiting.add(wake);
    });
  }
}

/**
 * What `promise` gives, or the reason of `signal`, whichever is first.
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal | null} signal
 * @returns {Promise<T>}
 */
function abortable(promise, signal) {
  if (signal === null) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Milliseconds of the longest timer there is: setTimeout takes a longer one for none at all. */
const MAX_TIMER = 2 ** 31 - 1;

/**
 * Calls `ring` after so many seconds, unless what it returns is called before.
 * @param {number} seconds
 * @param {() => void} ring
 * @returns {() => void}
 */
function after(seconds, ring) {
  const timer = setTimeout(ring, Math.min(Math.max(0, Math.ceil(seconds * 1000)), MAX_TIMER));
  return () => clearTimeout(timer);
}

/**
 * Do something that may be given up: `body` is given one AbortSignal (or null) for the deadline and
 * for the caller's own `signal`, and what it is aborted with is thrown.
 * @template T
 * @param {{timeout?: number | null, signal?: AbortSignal | null, late?: () => Error}} options
 *   `timeout` in seconds, null for no limit; `late` makes the error for it
 * @param {(signal: AbortSignal | null) => Promise<T>} body
 * @returns {Promise<T>}
 */
async function scoped({ timeout = null, signal = null, late = () => new Error("late") }, body) {
  signal?.throwIfAborted();
  if (timeout === null) return body(signal);
  const inner = new AbortController();
  const abort = () => inner.abort(signal?.reason);
  signal?.addEventListener("abort", abort, { once: true });
  const disarm = after(timeout, () => inner.abort(late()));
  try {
    return await body(inner.signal);
  } finally {
    disarm();
    signal?.removeEventListener("abort", abort);
  }
}

/**
 * Turns of the event loop. Unlike timers they are not held back, by four milliseconds or in a tab in
 * the background by seconds.
 */
class Turns {
  /** @type {MessageChannel | null} */
  #channel = null;
  /** @type {Deque<() => void>} */
  #callbacks = new Deque();

  /**
   * Call this in a turn of its own, after what has happened by now has been dealt with.
   * @param {() => void} callback
   */
  after(callback) {
    if (this.#channel === null) {
      this.#channel = new MessageChannel();
      this.#channel.port1.onmessage = () => {
        if (this.#callbacks.size) this.#callbacks.shift()();
        if (!this.#callbacks.size) this.#close(); // or a process that is no page would go on for ever
      };
    }
    this.#callbacks.push(callback);
    this.#channel.port2.postMessage(null);
  }

  /** @returns {Promise<void>} */
  next() {
    return new Promise((resolve) => this.after(resolve));
  }

  #close() {
    this.#channel?.port1.close();
    this.#channel = null;
  }
}

/** A timer is late by so many seconds when the page was frozen, or had too much to do. */
const LATE_ALARM = 1.5;
/** Seconds that what has arrived meanwhile is then given to be heard first. */
const ALARM_GRACE = 0.05;

/**
 * Calls `ring` at the time it was last set to, in seconds of `now`.
 *
 * It may ring early by the clock's resolution; the core then does nothing, and asks again. Where it
 * would ring much too late, it lets what arrived meanwhile be heard before: a page that was frozen
 * takes nobody for silent whom it has not listened to.
 */
class Alarm {
  /** @type {number | null} */
  #at = null;
  /** @type {(() => void) | null} */
  #disarm = null;
  #isGraced = false;
  #now;
  #ring;
  #turns;

  /**
   * @param {() => number} now
   * @param {Turns} turns
   * @param {() => void} ring
   */
  constructor(now, turns, ring) {
    this.#now = now;
    this.#turns = turns;
    this.#ring = ring;
  }

  /**
   * @param {number | null} at null is never
   */
  set(at) {
    if (at === this.#at) return;
    this.#at = at;
    if (this.#isGraced) return; // it rings soon
    this.#disarm?.();
    this.#disarm = at === null ? null : after(at - this.#now(), () => this.#due());
  }

  /** Ring now if it is time, without waiting for a timer that may be held back. */
  look() {
    if (this.#at !== null && this.#at <= this.#now()) this.#due();
  }

  #due() {
    this.#disarm?.();
    this.#disarm = null;
    if (this.#isGraced || this.#at === null) return;
    const now = this.#now();
    if (now - this.#at < LATE_ALARM) {
      this.#at = null;
      this.#ring();
      return;
    }
    this.#isGraced = true;
    const hop = () => {
      if (this.#now() < now + ALARM_GRACE) {
        this.#turns.after(hop);
        return;
      }
      this.#isGraced = false;
      if (this.#at === null) return;
      this.#at = null;
      this.#ring();
    };
    this.#turns.after(hop);
  }
}

/**
 * Streams that somebody waits for. They are held here: what waits is held by nothing but the stream,
 * which others may hold weakly.
 * @type {Set<ItemStream<any, any>>}
 */
const streamsWaitedFor = new Set();

/**
 * What `PeerManager.messages`, `PeerManager.events` and `Channel` iterate over.
 *
 * Every item that was put in since the stream was made comes out once, in order. The bound is kept by
 * who feeds it: `taken(item)` is called for each item that leaves, and makes of it what the reader
 * gets.
 * @template Item
 * @template [Value=Item]
 */
class ItemStream {
  /**
   * Shared with who feeds it, who may outlive it.
   * @type {Deque<Item>}
   */
  waiting = new Deque();
  #taken;
  #bell = new Bell();
  #isEnded = false;
  /** @type {Error | null} */
  #error = null;
  #readers = 0;

  /** @param {(item: Item) => Value} taken */
  constructor(taken) {
    this.#taken = taken;
  }

  /** How many items wait. */
  get size() {
    return this.waiting.size;
  }

  /** Whether there will be no more items than those that wait. */
  get isEnded() {
    return this.#isEnded;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** @returns {Promise<IteratorResult<Value, undefined>>} */
  async next() {
    while (!this.waiting.size) {
      if (this.#error !== null) throw this.#error;
      if (this.#isEnded) return { done: true, value: undefined };
      this.#readers++;
      streamsWaitedFor.add(this);
      try {
        await this.#bell.wait();
      } finally {
        if (!--this.#readers) streamsWaitedFor.delete(this);
      }
    }
    return { done: false, value: this.take() };
  }

  /**
   * Stop: nothing more is collected for this iterator, and what waits is dropped.
   * @returns {Promise<IteratorResult<Value, undefined>>}
   */
  async return() {
    this.end();
    this.#error = null;
    while (this.waiting.size) this.take();
    return { done: true, value: undefined };
  }

  /** Take the next item out, which must be there. */
  take() {
    return this.#taken(this.waiting.shift());
  }

  /**
   * Add an item. Not to be called after the end.
   * @param {Item} item
   */
  put(item) {
    this.waiting.push(item);
    this.#bell.ring();
  }

  /**
   * No more items: iteration stops, or throws `error`, after those that wait.
   * @param {Error | null} [error]
   */
  end(error = null) {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#error = error;
    this.#bell.ring();
  }
}

// --- restart.js ----------------------------------------------------------------------------------

// The ICE restarts of one connection: new credentials and candidates under the same DTLS.
//
// A Restart belongs to one epoch of a link. Like the link it is one table: an input that no row
// lists raises UnexpectedInput, or is refused with a ProtocolError when it came from the other
// side; either way nothing changes. A restart that is given up never harms the link either: what
// carries data goes on carrying it, and the link's own deadlines decide about a new connection.
//
// Each restart has a number, its generation (0 is the connection's first negotiation). Either side
// may begin one. The side that dials takes odd numbers and the other even ones, each higher than
// all that were seen or used before: so no number ever means two restarts, and whatever comes late,
// twice or after both sides began at once can be told by its number alone.

/**
 * How far the latest restart of a connection is.
 * - idle: none is under way
 * - offering: an offer is being made
 * - offered: the offer is sent, the answer has not come
 * - answering: an answer is being made
 * - checking: both descriptions are exchanged; ICE is at work beside what carries data
 * @typedef {"idle" | "offering" | "offered" | "answering" | "checking"} RestartState
 */

/**
 * What can happen to it.
 * @typedef {"begin"
 *   | "offer" | "answer" | "candidates"
 *   | "offer made" | "answer made" | "operation failed" | "selected"
 *   | "deadline"} RestartInput
 */

/**
 * In `state`, on `input` under `condition`: run `actions`, be in `next`.
 * @typedef {[state: RestartState, input: RestartInput, condition: string, next: RestartState,
 *   actions: string[], reason: string]} RestartRow
 */

/** @typedef {Operate | SendSignal | Refuse} RestartOutput */

/** @type {readonly RestartRow[]} */
const RESTART_TABLE = [
  // <generated: restart-table>
  ["idle", "begin", "patient", "offering", ["offer"], "begun here"],
  ["idle", "begin", "urgent", "offering", ["offer"], "begun here"],
  ["offered", "begin", "urgent", "offering", ["offer"], "what is under way is out of date"],
  ["checking", "begin", "urgent", "offering", ["offer"], "what is under way is out of date"],
  ["offering", "begin", "urgent", "offering", ["remember"], "begun when this step is done"],
  ["answering", "begin", "urgent", "answering", ["remember"], "begun when this step is done"],
  ["offering", "begin", "patient", "offering", [], "one is under way"],
  ["offered", "begin", "patient", "offered", [], "one is under way"],
  ["answering", "begin", "patient", "answering", [], "one is under way"],
  ["checking", "begin", "patient", "checking", [], "one is under way"],
  ["idle", "offer", "dials, newer", "answering", ["answer"], "begun by the other side"],
  ["idle", "offer", "waits, newer", "answering", ["answer"], "begun by the other side"],
  ["offering", "offer", "dials, newer", "offering", ["pass"], "both began: the smaller id's wins"],
  ["offered", "offer", "dials, newer", "offered", ["pass"], "both began: the smaller id's wins"],
  ["offering", "offer", "waits, newer", "answering", ["answer"], "both began: the smaller id's wins"],
  ["offered", "offer", "waits, newer", "answering", ["answer"], "both began: the smaller id's wins"],
  ["answering", "offer", "dials, newer", "answering", ["answer"], "the other side began another"],
  ["answering", "offer", "waits, newer", "answering", ["answer"], "the other side began another"],
  ["checking", "offer", "dials, newer", "answering", ["answer"], "the other side began another"],
  ["checking", "offer", "waits, newer", "answering", ["answer"], "the other side began another"],
  ["idle", "offer", "dials, older", "idle", [], "a restart that is over"],
  ["idle", "offer", "waits, older", "idle", [], "a restart that is over"],
  ["offering", "offer", "dials, older", "offering", [], "a restart that is over"],
  ["offering", "offer", "waits, older", "offering", [], "a restart that is over"],
  ["offered", "offer", "dials, older", "offered", [], "a restart that is over"],
  ["offered", "offer", "waits, older", "offered", [], "a restart that is over"],
  ["answering", "offer", "dials, older", "answering", [], "a restart that is over"],
  ["answering", "offer", "waits, older", "answering", [], "a restart that is over"],
  ["checking", "offer", "dials, older", "checking", [], "a restart that is over"],
  ["checking", "offer", "waits, older", "checking", [], "a restart that is over"],
  ["offered", "answer", "current", "checking", ["acceptAnswer"], "answered"],
  ["checking", "answer", "current", "checking", [], "the same answer again"],
  ["idle", "answer", "older", "idle", [], "a restart that is over"],
  ["offering", "answer", "older", "offering", [], "a restart that is over"],
  ["offered", "answer", "older", "offered", [], "a restart that is over"],
  ["answering", "answer", "older", "answering", [], "a restart that is over"],
  ["checking", "answer", "older", "checking", [], "a restart that is over"],
  ["offered", "candidates", "current", "offered", ["addCandidates"], "candidates"],
  ["answering", "candidates", "current", "answering", ["addCandidates"], "candidates"],
  ["checking", "candidates", "current", "checking", ["addCandidates"], "candidates"],
  ["idle", "candidates", "carries", "idle", ["addToCarrying"], "candidates of what carries data"],
  ["offering", "candidates", "carries", "offering", ["addToCarrying"], "candidates of what carries data"],
  ["offered", "candidates", "carries", "offered", ["addToCarrying"], "candidates of what carries data"],
  ["answering", "candidates", "carries", "answering", ["addToCarrying"], "candidates of what carries data"],
  ["checking", "candidates", "carries", "checking", ["addToCarrying"], "candidates of what carries data"],
  ["idle", "candidates", "older", "idle", [], "not of a restart that is under way"],
  ["idle", "candidates", "unknown", "idle", [], "not of a restart that is under way"],
  ["offering", "candidates", "older", "offering", [], "not of a restart that is under way"],
  ["offering", "candidates", "unknown", "offering", [], "not of a restart that is under way"],
  ["offered", "candidates", "older", "offered", [], "not of a restart that is under way"],
  ["offered", "candidates", "unknown", "offered", [], "not of a restart that is under way"],
  ["answering", "candidates", "older", "answering", [], "not of a restart that is under way"],
  ["answering", "candidates", "unknown", "answering", [], "not of a restart that is under way"],
  ["checking", "candidates", "older", "checking", [], "not of a restart that is under way"],
  ["checking", "candidates", "unknown", "checking", [], "not of a restart that is under way"],
  ["offering", "offer made", "current", "offered", ["sendOffer"], "offer sent"],
  ["offering", "offer made", "again", "offering", ["offer"], "out of date before it was sent"],
  ["answering", "answer made", "current", "checking", ["sendAnswer"], "answer sent"],
  ["answering", "answer made", "again", "offering", ["sendAnswer", "offer"], "answer sent, and out of date"],
  ["answering", "answer made", "selected", "idle", ["sendAnswer"], "took over already"],
  ["idle", "offer made", "older", "idle", [], "a restart that is over"],
  ["offering", "offer made", "older", "offering", [], "a restart that is over"],
  ["offered", "offer made", "older", "offered", [], "a restart that is over"],
  ["answering", "offer made", "older", "answering", [], "a restart that is over"],
  ["checking", "offer made", "older", "checking", [], "a restart that is over"],
  ["idle", "answer made", "older", "idle", [], "a restart that is over"],
  ["offering", "answer made", "older", "offering", [], "a restart that is over"],
  ["offered", "answer made", "older", "offered", [], "a restart that is over"],
  ["answering", "answer made", "older", "answering", [], "a restart that is over"],
  ["checking", "answer made", "older", "checking", [], "a restart that is over"],
  ["idle", "operation failed", "older", "idle", [], "a restart that is over"],
  ["offering", "operation failed", "older", "offering", [], "a restart that is over"],
  ["offered", "operation failed", "older", "offered", [], "a restart that is over"],
  ["answering", "operation failed", "older", "answering", [], "a restart that is over"],
  ["checking", "operation failed", "older", "checking", [], "a restart that is over"],
  ["offered", "selected", "current", "idle", ["carry"], "took over"],
  ["checking", "selected", "current", "idle", ["carry"], "took over"],
  ["answering", "selected", "current", "answering", ["carry"], "took over before the answer left"],
  ["idle", "selected", "older", "idle", ["carry"], "an earlier generation carries data"],
  ["offering", "selected", "older", "offering", ["carry"], "an earlier generation carries data"],
  ["offered", "selected", "older", "offered", ["carry"], "an earlier generation carries data"],
  ["answering", "selected", "older", "answering", ["carry"], "an earlier generation carries data"],
  ["checking", "selected", "older", "checking", ["carry"], "an earlier generation carries data"],
  ["offering", "operation failed", "current", "idle", [], "given up: it failed"],
  ["offered", "operation failed", "current", "idle", [], "given up: it failed"],
  ["answering", "operation failed", "current", "idle", [], "given up: it failed"],
  ["checking", "operation failed", "current", "idle", [], "given up: it failed"],
  ["offering", "deadline", "current", "idle", [], "given up: no offer was made"],
  ["offered", "deadline", "current", "idle", [], "given up: it was not answered"],
  ["answering", "deadline", "current", "idle", [], "given up: no answer was made"],
  ["checking", "deadline", "current", "idle", [], "given up: it found no path"],
  ["offering", "operation failed", "again", "offering", ["offer"], "given up, and begun anew"],
  ["answering", "operation failed", "again", "offering", ["offer"], "given up, and begun anew"],
  ["offering", "deadline", "again", "offering", ["offer"], "given up, and begun anew"],
  ["answering", "deadline", "again", "offering", ["offer"], "given up, and begun anew"],
  // </generated>
];
const RESTART_ROWS = new Map(RESTART_TABLE.map((row) => [`${row[0]}, ${row[1]}, ${row[2]}`, row]));

/** @type {ReadonlySet<RestartInput>} */
const RESTART_FROM_PEER = new Set(["offer", "answer", "candidates"]);
// What may find that another restart was asked for meanwhile.
/** @type {ReadonlySet<RestartInput>} */
const RESTART_DONE = new Set(["offer made", "answer made", "operation failed", "deadline"]);
// Half of what the schema takes: the other side can't bring us beyond what we may use ourselves.
const MAX_REMOTE_GENERATION = 2 ** 30;

/** The restarts of the connection of one epoch. See the top of this part for how it works. */
class Restart {
  /** @type {RestartState} */
  state = "idle";
  /** The number of the restart that is under way, or was the last. */
  generation = 0;
  /** The generation that carries data. */
  carrying = 0;
  /** What the latest restart was begun for. */
  reason = "";
  /** Why one was given up, until the link has read it. */
  givenUp = "";

  #config;
  #epoch;
  #dials;
  #mayBegin;
  /** @type {number | null} */
  #deadline = null;
  // The highest number that was seen or used, that was agreed on, and that they offered.
  #seen = 0;
  #agreed = 0;
  #theirs = 0;
  /** @type {string | null} */
  #remembered = null;
  /** @type {Trickle | null} */
  #current = null;
  /** @type {Trickle | null} */
  #carrying = null;
  /** @type {unknown} */
  #arg = null;
  /** @type {RestartOutput[]} */
  #out = [];

  /**
   * @param {{connectTimeout: number, restartTimeout: number, candidatesTimeout: number}} config
   * @param {object} options
   * @param {number} options.epoch
   * @param {boolean} options.dials  this side has the smaller id
   * @param {(now: number) => boolean} options.mayBegin  whether the other side may make us begin
   *   something now; asked for each of its offers that would
   */
  constructor(config, { epoch, dials, mayBegin }) {
    this.#config = config;
    this.#epoch = epoch;
    this.#dials = dials;
    this.#mayBegin = mayBegin;
  }

  // --- what the link reads ---

  /** When `tick` is wanted next. */
  nextDeadline() {
    return earliest(this.#deadline, this.#current?.completeAt, this.#carrying?.completeAt);
  }

  // --- inputs ---

  /**
   * Begin one. Urgent: even if one is under way, which is then out of date.
   * @param {string} reason
   * @param {number} now
   * @param {{urgent: boolean}} options
   */
  begin(reason, now, { urgent }) {
    return this.#feed("begin", urgent ? "urgent" : "patient", now, reason);
  }

  /**
   * A signal with a generation above 0 arrived for this epoch.
   * @param {Offer | Answer | Candidates} message
   * @param {number} now
   * @returns {RestartOutput[]}
   */
  message(message, now) {
    const number = message.generation;
    let text = null;
    if (number > MAX_REMOTE_GENERATION) {
      text = `generation ${number} is beyond ${MAX_REMOTE_GENERATION}`;
    } else if (message.kind === "Offer" && this.#isOurs(number)) {
      const kind = this.#dials ? "odd" : "even";
      text = `generation ${number} is not the other side's to offer: ${kind} ones are ours`;
    }
    if (text !== null) {
      const error = new ProtocolError(text, { code: "bad_generation", field: "$.generation" });
      return [{ kind: "Refuse", error }];
    }
    let which = this.#which(number);
    switch (message.kind) {
      case "Offer": {
        const age = number > Math.max(this.#agreed, this.#theirs) ? "newer" : "older";
        return this.#feed("offer", `${this.#dials ? "dials" : "waits"}, ${age}`, now, message);
      }
      case "Answer":
        return this.#feed("answer", which, now, message);
      case "Candidates":
        if (which === "older" && number === this.carrying) which = "carries";
        return this.#feed("candidates", which, now, message);
    }
  }

  /**
   * `MakeOffer` is done.
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  offerMade(generation, sdp, now) {
    return this.#feed("offer made", this.#told(generation, "offer made"), now, sdp);
  }

  /**
   * `AcceptOffer` is done.
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  answerMade(generation, sdp, now) {
    let condition = this.#told(generation, "answer made");
    if (condition === "current" && this.carrying === generation) condition = "selected";
    return this.#feed("answer made", condition, now, sdp);
  }

  /**
   * An operation for it, other than adding candidates, did not succeed.
   * @param {number} generation
   * @param {number} now
   */
  operationFailed(generation, now) {
    return this.#feed("operation failed", this.#told(generation, "operation failed"), now, null);
  }

  /**
   * Data goes over a pair of this generation.
   * @param {number} generation
   * @param {number} now
   */
  selected(generation, now) {
    return this.#feed("selected", this.#told(generation, "selected"), now, generation);
  }

  /**
   * Local candidates were found for a generation; those of one that is over are dropped.
   * @param {number} generation
   * @param {readonly IceCandidate[]} candidates
   * @param {{end: boolean}} options
   * @returns {RestartOutput[]}
   */
  localCandidates(generation, candidates, { end }) {
    let trickle = null;
    if (this.#told(generation, "candidates") === "current") trickle = this.#current;
    else if (generation === this.carrying) trickle = this.#carrying;
    return trickle === null ? [] : trickle.found(candidates, { end });
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {RestartOutput[]} */
    const out = [];
    for (const trickle of [this.#current, this.#carrying]) {
      if (trickle !== null && isDue(trickle.completeAt, now)) out.push(...trickle.complete());
    }
    if (isDue(this.#deadline, now)) {
      out.push(...this.#feed("deadline", this.#told(this.generation, "deadline"), now, null));
    }
    return out;
  }

  // --- the machine ---

  /** @param {number} number */
  #isOurs(number) {
    return (number % 2 === 1) === this.#dials;
  }

  /** @param {number} number */
  #which(number) {
    if (this.state !== "idle" && number === this.generation) return "current";
    return number <= this.#seen ? "older" : "unknown";
  }

  /**
   * @param {number} generation
   * @param {RestartInput} on
   */
  #told(generation, on) {
    const which = this.#which(generation);
    if (which === "unknown") {
      throw new UnexpectedInput(`generation ${generation} of epoch ${this.#epoch} has not begun`);
    }
    const again = which === "current" && RESTART_DONE.has(on) && this.#remembered !== null;
    return again ? "again" : which;
  }

  /**
   * @param {RestartInput} on
   * @param {string} condition
   * @param {number} now
   * @param {string | number | Offer | Answer | Candidates | null} arg
   * @returns {RestartOutput[]}
   */
  #feed(on, condition, now, arg) {
    const row = RESTART_ROWS.get(`${this.state}, ${on}, ${condition}`);
    if (row === undefined) {
      const text = `${on} (${condition}) of an ICE restart is not expected when it is ${this.state}`;
      if (!RESTART_FROM_PEER.has(on)) throw new UnexpectedInput(text);
      const error = new ProtocolError(text, { code: `unexpected_${on}`, field: "$.generation" });
      return [{ kind: "Refuse", error }];
    }
    const [, , , next, actions, reason] = row;
    if (RESTART_FROM_PEER.has(on)) {
      const message = /** @type {Offer | Answer | Candidates} */ (arg);
      const error = this.#refused(on, actions, message, now);
      if (error !== null) return [{ kind: "Refuse", error }];
    }
    this.#arg = arg;
    this.#out = [];
    for (const action of actions) Restart.#ACTIONS[action](this, now);
    if ((on === "operation failed" || on === "deadline") && condition !== "older") {
      this.givenUp = reason;
    }
    this.#setState(next, actions, now);
    const out = this.#out;
    this.#out = [];
    this.#arg = null;
    return out;
  }

  /**
   * @param {RestartState} next
   * @param {string[]} actions
   * @param {number} now
   */
  #setState(next, actions, now) {
    const changed = this.state !== next;
    this.state = next;
    // Each restart that begins, and each that gets an answer, has a deadline of its own.
    switch (next) {
      case "idle":
        this.#deadline = null;
        if (changed) this.#current = null;
        break;
      case "offering":
        if (actions.includes("offer")) this.#deadline = now + this.#config.restartTimeout;
        break;
      case "offered":
        if (changed) this.#deadline = now + this.#config.restartTimeout;
        break;
      case "answering":
        if (actions.includes("answer")) this.#deadline = now + this.#config.connectTimeout;
        break;
      case "checking":
        if (changed) this.#deadline = now + this.#config.connectTimeout;
        break;
    }
  }

  /**
   * Why a message that has its row is refused all the same.
   * @param {RestartInput} on
   * @param {string[]} actions
   * @param {Offer | Answer | Candidates} message
   * @param {number} now
   */
  #refused(on, actions, message, now) {
    let fits = true;
    switch (message.kind) {
      case "Offer":
        if (actions.includes("answer") && !this.#mayBegin(now)) {
          return new ProtocolError("offer would begin another ICE restart, after too many: one a second is taken", {
            code: "too_many_attempts",
            field: "$.type",
          });
        }
        break;
      case "Answer":
        if (actions.includes("acceptAnswer")) fits = this.#trickle.fits(countCandidates(message.sdp));
        break;
      case "Candidates":
        if (actions.includes("addCandidates")) fits = this.#trickle.fits(message.candidates.length);
        else if (actions.length) fits = this.#carrying?.fits(message.candidates.length) ?? true;
        break;
    }
    if (fits) return null;
    return new ProtocolError(`${on} would bring the ICE restart to too many candidates`, {
      code: "too_many_candidates",
      field: "$",
    });
  }

  // --- actions, named in the table ---

  /** @type {Record<string, (it: Restart, now: number) => void>} */
  static #ACTIONS = {
    offer: (it) => it.#offer(),
    remember: (it) => (it.#remembered = it.#text),
    pass: (it) => it.#pass(),
    answer: (it, now) => it.#answer(now),
    sendOffer: (it) => it.#sendOffer(),
    sendAnswer: (it) => it.#sendAnswer(),
    acceptAnswer: (it, now) => it.#acceptAnswer(now),
    addCandidates: (it, now) => it.#add(it.#trickle, now),
    addToCarrying: (it, now) => it.#add(it.#carrying, now),
    carry: (it) => it.#carry(),
  };

  /**
   * @param {number} generation
   * @param {string} reason
   */
  #begin(generation, reason) {
    this.generation = generation;
    this.reason = reason;
    this.#seen = Math.max(this.#seen, generation);
    this.#remembered = null;
    this.#current = new Trickle(this.#epoch, generation, this.#config.candidatesTimeout);
    return this.#current;
  }

  #offer() {
    let number = this.#seen + 1;
    if (!this.#isOurs(number)) number += 1;
    this.#begin(number, this.#remembered ?? this.#text);
    this.#operate({ kind: "MakeOffer", generation: number });
  }

  #pass() {
    this.#theirs = /** @type {Offer} */ (this.#arg).generation;
    this.#seen = Math.max(this.#seen, this.#theirs);
  }

  /** @param {number} now */
  #answer(now) {
    this.#pass();
    const { sdp, generation } = /** @type {Offer} */ (this.#arg);
    this.#begin(generation, "the other side began it").described(sdp, now);
    this.#operate({ kind: "AcceptOffer", sdp, generation });
  }

  #sendOffer() {
    const sdp = this.#text;
    this.#send({ kind: "Offer", sdp, generation: this.generation });
    this.#out.push(...this.#trickle.sent(sdp));
  }

  #sendAnswer() {
    const sdp = this.#text;
    this.#agreed = this.generation;
    this.#send({ kind: "Answer", sdp, generation: this.generation });
    this.#out.push(...this.#trickle.sent(sdp));
  }

  /** @param {number} now */
  #acceptAnswer(now) {
    const { sdp } = /** @type {Answer} */ (this.#arg);
    this.#agreed = this.generation;
    this.#trickle.described(sdp, now);
    this.#operate({ kind: "AcceptAnswer", sdp, generation: this.generation });
  }

  /**
   * @param {Trickle | null} trickle
   * @param {number} now
   */
  #add(trickle, now) {
    const { candidates, end } = /** @type {Candidates} */ (this.#arg);
    if (trickle !== null) this.#out.push(...trickle.received(candidates, { end, now }));
  }

  #carry() {
    const generation = /** @type {number} */ (this.#arg);
    if (generation === this.carrying) return;
    const current = generation === this.generation && this.state !== "idle";
    this.#carrying = current ? this.#current : null;
    this.carrying = generation;
  }

  /** @param {Operate["operation"]} operation */
  #operate(operation) {
    this.#out.push({ kind: "Operate", epoch: this.#epoch, operation });
  }

  /** @param {SendSignal["body"]} body */
  #send(body) {
    this.#out.push({ kind: "SendSignal", epoch: this.#epoch, body });
  }

  /** Of the restart that is under way: who asks for it knows that one is. */
  get #trickle() {
    return /** @type {Trickle} */ (this.#current);
  }

  /** A reason or a session description, where the row is for an input that has one. */
  get #text() {
    return /** @type {string} */ (this.#arg);
  }
}

/**
 * The earliest of these times, or null when there is none.
 * @param {...(number | null | undefined)} times
 */
function earliest(...times) {
  const set = times.filter((at) => at !== null && at !== undefined);
  return set.length ? Math.min(.../** @type {number[]} */ (set)) : null;
}

/**
 * Whether a time is set and has come.
 * @param {number | null} at
 * @param {number} now
 */
function isDue(at, now) {
  return at !== null && at <= now;
}

// --- transport.js --------------------------------------------------------------------------------

// Signalling over a WebSocket (RFC 6455) to the relay: the wire around a Session, one timer, and words
// for what went wrong. The same as meshpeer's signaling/client.py and signaling/websocket.py.
//
// A browser can't send WebSocket pings, so the protocol's own do their work; and it can't say when a
// socket has room again, so data frames are given to it a few at a time. Nor does it say why a
// connection can't be made.

/** Seconds without a word from the relay after which it is pinged; it has as long to answer. */
const KEEPALIVE = 10;
/** Seconds that a connection in doubt has to show that it works. */
const CHECK_TIMEOUT = 1;
/** Seconds that the last words on a connection may take. */
const CLOSE_TIMEOUT = 1;
/** Bytes that a message from the relay may have: a welcome lists a room of thousands. */
const MAX_SIGNALING_MESSAGE = 16 * 1024 * 1024;
/** Bytes that a socket may have buffered for data frames to be given to it: signals wait behind them. */
const SOCKET_BUFFER = 64 * 1024;
/** Seconds between two looks whether it has less; what the relay says is a reason to look as well. */
const SOCKET_LOOK = 0.005;
/**
 * Seconds by which a timer is late in a tab that is throttled, was frozen, or has much to do: what the
 * relay said meanwhile may be waiting to be heard then.
 */
const TIMER_LATE = 0.5;
/** Seconds that a timer lasts at most here; setTimeout takes one beyond 2**31 ms for none. */
const LONGEST_TIMER = 86400;

const RELAY_EXAMPLE = "a relay's URL looks like ws://localhost:3001 or wss://relay.example.org";
const BAD_JOIN_TOKEN = `is no join token: it must be a string of 1 to ${MAX_JOIN_TOKEN} printable ASCII characters`;
const JOIN_TOKEN = new RegExp(`^[!-~]{1,${MAX_JOIN_TOKEN}}$`);

/**
 * The service can't be reached; the transport tries again by itself, in `retryIn` seconds.
 * @typedef {{kind: "SignalingLost", reason: string, retryIn: number | null}} SignalingLost
 */
/** @typedef {SessionEvent | SignalingLost} SignalingEvent */
/**
 * A join token, or what gives one for each connection, as one that expires needs.
 * @typedef {string | (() => string | Promise<string>)} JoinTokenSource
 */

/**
 * `url`, or what was meant to be one, without a user's password and without a query.
 * @param {string} url
 */
function urlWithoutSecrets(url) {
  try {
    const { protocol, host, pathname } = new URL(url);
    if (host) return `${protocol}//${host}${pathname}`;
  } catch {
    // It does not parse, so where a password ends is not known.
  }
  // To the last @, wherever it is: a password that is not percent-encoded may hold a / or a ?.
  return url.replace(/^(.*?\/\/)?.*@/s, "$1").split(/[?#]/, 1)[0];
}

/**
 * The address of the relay's WebSocket, from that or from a page of the relay's.
 *
 * Throws `ConfigError`.
 * @param {string | URL} url
 */
function relayAddress(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    throw new ConfigError(`${repr(urlWithoutSecrets(String(url)))} is not the URL of a relay; ${RELAY_EXAMPLE}`);
  }
  const shown = () => repr(urlWithoutSecrets(parsed.href));
  if (parsed.protocol === "http:" || parsed.protocol === "https:") {
    parsed.protocol = parsed.protocol === "http:" ? "ws:" : "wss:";
    parsed.pathname = parsed.pathname.replace(/\/chat(\/[^/]*)?$|\/meshpeer\.js$/, "/");
    parsed.search = parsed.hash = "";
  } else if (parsed.protocol !== "ws:" && parsed.protocol !== "wss:") {
    throw new ConfigError(`${shown()} is not the URL of a relay: its scheme is ${parsed.protocol}; ${RELAY_EXAMPLE}`);
  } else if (parsed.hash) {
    throw new ConfigError(`${shown()} has a fragment (#…), which the URL of a relay can't; ${RELAY_EXAMPLE}`);
  }
  return parsed;
}

/** A text of 43 random characters, for a token. */
function newSeatToken() {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  return btoa(String.fromCharCode(...bytes))
    .replace(/\+/g, "-")
    .replace(/\//g, "_")
    .replace(/=/g, "");
}

/**
 * Whether the relay says that it answers a ping. Short ones are looked at only.
 * @param {unknown} data
 */
function isPong(data) {
  if (typeof data !== "string" || data.length > 64 || !data.includes('"pong"')) return false;
  try {
    return decodeRelay(data).kind === "Pong";
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    return false; // the session deals with it
  }
}

/** One connection, from the session's `Connect` to its `Disconnect` or its end. */
class RelayLine {
  /** @type {WebSocket | null} */
  socket = null;
  isOpen = false;
  /**
   * What goes out as the socket has room; the session's windows bound it.
   * @type {Uint8Array[]}
   */
  frames = [];
  pings = 0;
  pongs = 0;
  /** The ping whose answer shows that it works, where that is in doubt. */
  doubted = 0;
  heardAt = 0;
  /** When it is given up, unless something is heard before; null: nothing is overdue. */
  giveUpAt = /** @type {number | null} */ (null);
  /** How long it had, for the text. */
  patience = 0;
  /** `giveUpAt` has been put off once, because the timer was late. */
  isPutOff = false;
}

/**
 * Runs a `Session` over WebSockets. Times are seconds.
 *
 * `onEvent` is told what happens after the first `Welcome`, which `open` returns: events of the
 * session and `SignalingLost`, in order, never while another one is being told. `onEnd` is called
 * once, with the error, when the transport ends by itself after that.
 */
class RelayTransport {
  #url;
  #shown;
  #service;
  #joinToken;
  #onEvent;
  #onEnd;
  #session;
  /** @type {RelayLine | null} */
  #line = null;
  /** @type {SessionOutput[]} */
  #outputs = [];
  #isDoing = false;
  /** @type {{resolve: (welcome: Welcome) => void, reject: (error: Error) => void} | null} */
  #opening = null;
  /** @type {Error | null} */
  #end = null;
  /** @type {Promise<void> | null} */
  #closing = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #timerAt = Infinity;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #looker;
  /** A tick of the session that was late has been put off to this time. */
  #lateTick = /** @type {number | null} */ (null);
  /** Sockets that are being closed. @type {Set<Promise<void>>} */
  #hangUps = new Set();

  /**
   * Throws `ConfigError` when `url` or `joinToken` can't be one.
   * @param {string | URL} url of the relay (`ws://` or `wss://`), or of a page of the relay's
   * @param {object} options
   * @param {SessionConfig} options.config
   * @param {JoinTokenSource | null} [options.joinToken] shows that we may join, where the relay asks
   *   for that. A function is asked before each connection, within the time that it may take; what it
   *   throws makes that attempt fail.
   * @param {(event: SignalingEvent) => void} options.onEvent
   * @param {(error: Error) => void} options.onEnd
   */
  constructor(url, { config, joinToken = null, onEvent, onEnd }) {
    const address = relayAddress(url);
    if (joinToken !== null && typeof joinToken !== "function" && !JOIN_TOKEN.test(joinToken)) {
      throw new ConfigError(`joinToken ${BAD_JOIN_TOKEN}`);
    }
    this.#url = address.href;
    const path = address.pathname === "/" ? "" : address.pathname;
    this.#shown = `${address.protocol}//${address.host}${path}`;
    this.#service = `the relay at ${this.#shown}`;
    this.#joinToken = joinToken;
    this.#onEvent = onEvent;
    this.#onEnd = onEnd;
    this.#session = new Session(config, { random: Math.random, service: this.#service });
  }

  /** The relay's address as it may be shown: without a password and without a query. */
  get url() {
    return this.#shown;
  }

  /** Where the session stands: new, connecting, joining, seated, waiting or closed. */
  get state() {
    return this.#session.state;
  }

  /**
   * Why the latest try to reach the relay failed; null after a success.
   * @returns {MeshError | null}
   */
  get lastFailure() {
    return this.#session.lastFailure;
  }

  /** Seconds to the next try to reach the relay; null while none is waited for. */
  retryIn() {
    const due = this.#session.state === "waiting" ? this.#session.nextDeadline() : null;
    return due === null ? null : Math.max(0, due - this.#now());
  }

  /**
   * Take a seat. Tries until it succeeds or `close` is called; the caller has the deadline.
   *
   * A join without a token gets one of its own, so that a seat whose welcome was lost on the way is
   * still ours. Throws `InvalidData` when `join` does not fit the schema, `RefusedError` when the
   * relay refuses for good, `ConfigError` when the browser won't connect there, `MeshClosed` when
   * `close` was called, and the reason of `signal` when that was aborted: the transport is closed then.
   * @param {Join} join
   * @param {AbortSignal | null} [signal]
   * @returns {Promise<Welcome>}
   */
  async open(join, signal = null) {
    this.#checkOpen();
    signal?.throwIfAborted();
    const outputs = this.#session.open(join.token === null ? { ...join, token: newSeatToken() } : join, this.#now());
    const onAbort = () => {
      this.#opening?.reject(signal?.reason);
      void this.close();
    };
    signal?.addEventListener("abort", onAbort);
    try {
      return await new Promise((resolve, reject) => {
        this.#opening = { resolve, reject };
        this.#do(outputs);
      });
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /**
   * Send a signal; kept and sent later while the relay is away.
   *
   * Throws `SignalingBacklog` when too many are kept, `MeshClosed` after the end.
   * @param {SignalOut} signal
   */
  send(signal) {
    this.#checkOpen();
    this.#do(this.#session.send(signal));
  }

  /**
   * Tell the room a new name or metadata; null leaves it as it is. Throws like `send`.
   * @param {string | null} name
   * @param {Metadata | null} metadata
   */
  update(name, metadata) {
    this.#checkOpen();
    this.#do(this.#session.update(name, metadata));
  }

  /**
   * Bytes of frames that may go to a member now; 0 without a seat.
   * @param {string} to
   */
  forwardRoom(to) {
    return this.#end === null ? this.#session.forwardRoom(to) : 0;
  }

  /**
   * Send a data frame of up to 64 KiB; dropped without a seat, and 64 KiB beyond `forwardRoom`.
   * @param {string} to
   * @param {string} toIncarnation
   * @param {Uint8Array} data
   */
  forward(to, toIncarnation, data) {
    if (this.#isUnderWay()) this.#do(this.#session.forward(to, toIncarnation, data));
  }

  /**
   * Tell the relay how these links stand; dropped without a seat.
   * @param {readonly LinkReport[]} links
   */
  report(links) {
    if (this.#isUnderWay()) this.#do(this.#session.report(links));
  }

  /**
   * The network has changed, the page was away, or a peer fell silent and maybe the network with it.
   *
   * The connection has `CHECK_TIMEOUT` seconds to show that it works. When the network has changed,
   * what would be tried later is tried now.
   * @param {{networkChanged: boolean}} options
   */
  doubt({ networkChanged }) {
    if (!this.#isUnderWay()) return;
    if (this.#line?.isOpen) this.#doubt(this.#line, networkChanged);
    this.#do(networkChanged ? this.#session.hurry(this.#now()) : []);
  }

  /**
   * Give the seat up, as far as the relay can be reached within a second, and end: nothing is told
   * from now on. May be called at any time and more than once.
   * @returns {Promise<void>}
   */
  close() {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close() {
    if (this.#end === null) {
      this.#finish(new MeshClosed("the signalling transport is closed"), () => {});
      if (this.#line?.isOpen) this.#flush(this.#line, Infinity); // behind the goodbye nothing is read
      this.#do(this.#session.close(this.#now()));
    }
    await null; // who is being told something may have called: what is to be done is done after that
    await Promise.all(this.#hangUps); // within CLOSE_TIMEOUT
  }

  // --- the session's outputs ---

  #now() {
    return performance.now() / 1000;
  }

  #isUnderWay() {
    return this.#end === null && this.#session.state !== "new" && this.#session.state !== "closed";
  }

  #checkOpen() {
    if (this.#end instanceof ClosedError) throw this.#end;
    if (this.#end !== null) throw new MeshClosed(`the signalling transport has ended: ${this.#end.message}`);
  }

  /**
   * What is told may bring forth more outputs: those come behind the ones that are there.
   * @param {readonly SessionOutput[]} outputs
   */
  #do(outputs) {
    this.#outputs.push(...outputs);
    if (this.#isDoing) return;
    this.#isDoing = true;
    try {
      for (let output = this.#outputs.shift(); output; output = this.#outputs.shift()) this.#doOne(output);
    } catch (error) {
      this.#fault(error);
    } finally {
      this.#isDoing = false;
    }
    this.#arm();
  }

  /** @param {SessionOutput} output */
  #doOne(output) {
    const line = this.#line;
    switch (output.kind) {
      case "Tell":
        if (this.#opening !== null && output.event.kind === "Welcome") {
          this.#opening.resolve(output.event);
          this.#opening = null;
        } else {
          this.#tell(output.event);
        }
        break;
      case "Transmit":
        line?.socket?.send(output.data);
        break;
      case "TransmitFrame":
        if (line !== null) {
          line.frames.push(output.data);
          this.#flush(line);
        }
        break;
      case "Connect":
        this.#line = new RelayLine();
        void this.#dial(this.#line);
        break;
      case "Disconnect":
        this.#hangUp();
        break;
      case "Lost":
        this.#tell({ kind: "SignalingLost", reason: output.reason, retryIn: output.retryIn });
        break;
      case "Fail":
        this.#finish(output.error);
    }
  }

  /** @param {SignalingEvent} event */
  #tell(event) {
    if (this.#end === null) this.#onEvent(event);
  }

  /**
   * @param {Error} error
   * @param {(error: Error) => void} [onEnd]
   */
  #finish(error, onEnd = this.#onEnd) {
    if (this.#end !== null) return;
    this.#end = error;
    if (this.#opening === null) return onEnd(error);
    this.#opening.reject(error);
    this.#opening = null;
  }

  /**
   * A fault of the code here, or of who was told: nobody may wait for ever because of it.
   * @param {unknown} error
   */
  #fault(error) {
    this.#outputs.length = 0;
    this.#hangUp();
    this.#finish(error instanceof Error ? error : new Error(String(error)));
    this.#arm();
  }

  // --- the connection ---

  /**
   * Make the connection that `line` is for; its fate is told to the session.
   * @param {RelayLine} line
   */
  async #dial(line) {
    let token = null;
    try {
      token = await this.#token();
    } catch (error) {
      return this.#lost(line, /** @type {SignalingUnavailable} */ (error).message);
    }
    if (line !== this.#line) return;
    let socket;
    try {
      socket = new WebSocket(this.#url);
    } catch (error) {
      // SecurityError: it is the same at each try. Not its text, which has the whole URL.
      const name = error instanceof Error ? error.name : typeof error;
      const why = "a page of https:// may open wss:// only, and one with a Content-Security-Policy what that allows";
      return this.#fault(new ConfigError(`this page can't open a WebSocket to ${this.#service} (${name}): ${why}`));
    }
    socket.binaryType = "arraybuffer";
    line.socket = socket;
    socket.onopen = () => {
      line.isOpen = true;
      line.heardAt = this.#now();
      this.#feed(() => this.#session.connected(this.#now(), token));
    };
    socket.onmessage = ({ data }) => this.#received(line, data);
    socket.onclose = ({ code, reason }) => this.#lost(line, this.#whyClosed(line, code, reason));
  }

  /** The join token of this attempt. */
  async #token() {
    const source = this.#joinToken;
    if (typeof source !== "function") return source;
    let token;
    try {
      token = await source();
    } catch (error) {
      // Not its text, which may have a token or a password in it.
      const name = error instanceof Error ? error.name : typeof error;
      throw new SignalingUnavailable(`no join token: joinToken threw ${name}`);
    }
    if (typeof token !== "string" || !JOIN_TOKEN.test(token)) {
      throw new SignalingUnavailable(`what joinToken returned ${BAD_JOIN_TOKEN}`);
    }
    return token;
  }

  /**
   * @param {RelayLine} line
   * @param {string | ArrayBuffer} message
   */
  #received(line, message) {
    const now = this.#now();
    line.heardAt = now;
    const isAnswer = isPong(message);
    if (isAnswer && line.pongs < line.pings) line.pongs++;
    if (line.pongs >= line.doubted) {
      line.giveUpAt = null;
      line.isPutOff = false;
    }
    const data = typeof message === "string" ? message : new Uint8Array(message);
    if (data.length > MAX_SIGNALING_MESSAGE) {
      const text = `${this.#service} sent ${data.length} bytes in one message, the limit is ${MAX_SIGNALING_MESSAGE}`;
      return this.#lost(line, text);
    }
    if (!isAnswer) this.#feed(() => this.#session.received(data, now));
    this.#flush(line);
    this.#arm();
  }

  /**
   * The connection is gone, or was not made.
   * @param {RelayLine} line
   * @param {string} reason
   */
  #lost(line, reason) {
    if (line !== this.#line) return;
    const { isOpen } = line;
    this.#hangUp();
    const now = this.#now();
    this.#feed(() => (isOpen ? this.#session.dropped(reason, now) : this.#session.connectionFailed(reason, now)));
  }

  /** @param {() => SessionOutput[]} input */
  #feed(input) {
    let outputs;
    try {
      outputs = input();
    } catch (error) {
      this.#fault(error);
      return;
    }
    this.#do(outputs);
  }

  /**
   * Let go of the connection: nothing of it comes here any more. What it has buffered goes out first,
   * and `close` waits for that, `CLOSE_TIMEOUT` seconds at most.
   */
  #hangUp() {
    const line = this.#line;
    this.#line = null;
    clearTimeout(this.#looker);
    this.#looker = undefined;
    const socket = line?.socket;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState === WebSocket.CLOSED) return;
    /** @type {Promise<void>} */
    const closed = new Promise((resolve) => {
      const patience = setTimeout(resolve, CLOSE_TIMEOUT * 1000);
      socket.onclose = () => {
        clearTimeout(patience);
        resolve();
      };
    });
    this.#hangUps.add(closed);
    void closed.then(() => {
      socket.onclose = null;
      this.#hangUps.delete(closed);
    });
    socket.close(1000);
  }

  /**
   * Give frames to the socket as far as it has room.
   * @param {RelayLine} line
   * @param {number} [limit]
   */
  #flush(line, limit = SOCKET_BUFFER) {
    const { socket, frames } = line;
    if (line !== this.#line || socket === null) return;
    while (frames.length && socket.bufferedAmount < limit) {
      socket.send(/** @type {Uint8Array<ArrayBuffer>} */ (frames.shift()));
    }
    if (frames.length && this.#looker === undefined) {
      this.#looker = setTimeout(() => {
        this.#looker = undefined;
        this.#flush(line);
      }, SOCKET_LOOK * 1000);
    }
  }

  /**
   * @param {RelayLine} line
   * @param {number} code
   * @param {string} reason
   */
  #whyClosed(line, code, reason) {
    if (line.isOpen) {
      if (code === 1006 || code === 1005) return `the connection to ${this.#service} broke`;
      return `${this.#service} closed the connection (${code}${reason && ` ${reason}`})`;
    }
    // The browser does not say why (WHATWG WebSockets, section 4): a page could scan networks else.
    if (globalThis.navigator?.onLine === false) return `${this.#service} can't be reached: this device is offline`;
    const origin = globalThis.location?.origin;
    return (
      `${this.#service} can't be reached: is it running, is there a network` +
      (this.#url.startsWith("wss:") ? ", is its TLS certificate trusted" : "") +
      (origin ? `, and does it allow pages of ${origin} (RelayConfig.origins)?` : "?")
    );
  }

  // --- whether it works ---

  /**
   * @param {RelayLine} line
   * @param {number} now
   * @param {number} patience
   */
  #ping(line, now, patience) {
    line.pings++;
    line.socket?.send(encode({ kind: "Ping" }));
    line.giveUpAt = now + patience;
    line.patience = patience;
    line.isPutOff = false;
  }

  /**
   * @param {RelayLine} line
   * @param {boolean} networkChanged
   */
  #doubt(line, networkChanged) {
    if (line.giveUpAt !== null && line.patience <= CHECK_TIMEOUT) return; // it is being looked at
    const now = this.#now();
    if (this.#session.state === "seated") {
      this.#ping(line, now, CHECK_TIMEOUT);
      line.doubted = line.pings;
    } else if (this.#session.state === "joining" && networkChanged) {
      // Until the join is answered nothing else may be said: its answer is looked for.
      line.giveUpAt = now + CHECK_TIMEOUT;
      line.patience = CHECK_TIMEOUT;
    }
  }

  /**
   * When to look after the connection next.
   * @returns {number | null}
   */
  #watchAt() {
    const line = this.#line;
    if (!line?.isOpen) return null;
    if (line.giveUpAt !== null) return line.giveUpAt;
    return this.#session.state === "seated" ? line.heardAt + KEEPALIVE : null;
  }

  /** @param {number} now */
  #watch(now) {
    const line = this.#line;
    const at = this.#watchAt();
    if (line === null || at === null || now < at) return;
    if (line.giveUpAt === null) {
      this.#ping(line, now, KEEPALIVE);
    } else if (now - at > TIMER_LATE && !line.isPutOff) {
      line.isPutOff = true;
      line.giveUpAt = now + CHECK_TIMEOUT;
    } else {
      const isDoubted = line.pongs < line.doubted || this.#session.state === "joining";
      this.#lost(line, `${this.#service} did not answer within ${line.patience} s`);
      // There is another way now, or none.
      if (isDoubted && this.#isUnderWay()) this.#do(this.#session.hurry(now));
    }
  }

  // --- the timer ---

  #deadline() {
    if (this.#end !== null) return null;
    const deadline = this.#lateTick ?? this.#session.nextDeadline();
    const watch = this.#watchAt();
    return deadline === null ? watch : watch === null ? deadline : Math.min(deadline, watch);
  }

  #arm() {
    const at = this.#deadline() ?? Infinity;
    // A timer that is too early looks again; one is not made for each message.
    if (at >= this.#timerAt && at !== Infinity) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#timerAt = at;
    if (at === Infinity) return;
    const wait = Math.min(Math.max(0, at - this.#now()), LONGEST_TIMER);
    this.#timer = setTimeout(() => this.#wake(), Math.ceil(wait * 1000));
  }

  #wake() {
    this.#timerAt = Infinity;
    const now = this.#now();
    this.#watch(now);
    const due = this.#isUnderWay() ? this.#session.nextDeadline() : null;
    if (due !== null && now >= due) {
      const { state } = this.#session;
      const isAnswerDue = state === "connecting" || state === "joining";
      if (isAnswerDue && this.#lateTick === null && now - due > TIMER_LATE) {
        this.#lateTick = now + TIMER_LATE;
      } else if (this.#lateTick === null || now >= this.#lateTick) {
        this.#lateTick = null;
        this.#feed(() => this.#session.tick(now));
      }
    } else {
      this.#lateTick = null;
    }
    this.#arm();
  }
}

// --- files.js ------------------------------------------------------------------------------------

// Files of any size between two peers: offered, accepted, sent, and checked by their SHA-256. The same
// as meshpeer's files.py; docs/files.md has the exchange, message by message.
//
// A page has no directory: what it sends is a File or a Blob, and what it receives becomes a Blob, or
// goes where the application wants it. Nothing is held in memory but what is under way: a Blob is kept
// by the browser, which puts it on the disk when it is large.

/** The channel of messages that transfers go over. */
const FILE_CHANNEL = "meshpeer.file";
/** Bytes of a file in one message, at most. */
const FILE_CHUNK = 256 * 1024;
/** How many offers wait for a `Files.receive`; further ones are refused. */
const MAX_FILE_OFFERS = 16;

/** Transfers of peers that left, of which is known whom to answer when they are back. */
const MAX_BROKEN_FILES = 1000;
/** Bytes that are read of a Blob at once. Each read costs a round trip to the browser's process. */
const FILE_BLOCK = 1024 * 1024;
/** Bytes that are collected before they are handed to the browser as a Blob. */
const FILE_PIECE = 4 * 1024 * 1024;
/** Seconds that a sink has to end what it does, and to be told of the end, before who waits is told. */
const FILE_END_PATIENCE = 1;
/** Milliseconds between two reports of progress, at least. */
const FILE_REPORT_EVERY = 100;
/** Milliseconds that are worked without letting the page do something else. */
const FILE_WORK = 8;
/** Bytes of UTF-8 in the name of a file: what common file systems take. */
const MAX_FILE_NAME = 255;
/** Characters in the reason for which a file is stopped. */
const MAX_FILE_WHY = 500;

/**
 * What of a peer is looked at.
 * @typedef {object} FilePeer
 * @property {string} id
 * @property {string} incarnation
 * @property {string | null} closedReason
 */

/**
 * How far a transfer is. The first report has where it begins, more than 0 when resumed.
 * @typedef {object} FileProgress
 * @property {"FileProgress"} kind
 * @property {FilePeer} peer  who is at the other end
 * @property {string} name
 * @property {number} size  bytes of the whole file
 * @property {number} done  bytes accepted for sending, or stored at the receiving side, with those of
 *   an earlier transfer; falls back to 0 when those were wrong
 */

/**
 * A file that the other side has stored and checked.
 * @typedef {object} FileSent
 * @property {"FileSent"} kind
 * @property {string} name  what it was offered as
 * @property {number} size  bytes
 * @property {string} sha256  in lower-case hexadecimal
 * @property {number} resumedFrom  how many bytes the other side had from an earlier transfer
 */

/**
 * A file that is stored and checked.
 * @typedef {object} FileReceived
 * @property {"FileReceived"} kind
 * @property {string} name  what it was offered as
 * @property {number} size  bytes
 * @property {string} sha256  in lower-case hexadecimal
 * @property {FilePeer} sender
 * @property {number} resumedFrom  how many bytes were here from an earlier transfer
 * @property {Blob | null} blob  the file; null where the application gave a sink
 */

/**
 * A peer offers a file, which waits until it is received or refused.
 * @typedef {object} FileOffered
 * @property {"FileOffered"} kind
 * @property {string} peerId
 * @property {string} name
 * @property {number} size  bytes
 * @property {string} sha256  in lower-case hexadecimal
 */

/**
 * An offer is gone before anybody took it: its sender stopped, or left.
 * @typedef {object} FileWithdrawn
 * @property {"FileWithdrawn"} kind
 * @property {string} peerId
 * @property {string} name
 * @property {string} reason
 */

/** @typedef {Blob | null | undefined | void} MaybeBlob */

/**
 * Where an incoming file goes. What the methods return is waited for; the sender gets its credit back
 * when `write` is done, so a slow sink slows the sender. What they throw ends the transfer.
 * @typedef {object} FileSink
 * @property {(offer: FileOffered) => MaybeBlob | Promise<MaybeBlob>} [begin]
 *   what an earlier transfer of this file left here; it goes on from there. Without, from the beginning
 * @property {(bytes: Uint8Array) => unknown} write  the next bytes, which are the sink's own
 * @property {() => unknown} [empty]  forget what is there: the file comes anew. Needed where `begin`
 *   gives something
 * @property {() => unknown} [close]  all is there, and the sum is right
 * @property {(reason: unknown) => unknown} [abort]  it ended early; what is there may be kept. Called
 *   when what was begun before is done
 */

/** @typedef {FileSink | WritableStream<Uint8Array>} FilePlace */
/** @typedef {FilePlace | ((offer: FileOffered) => FilePlace | Promise<FilePlace>)} FileTarget */

/**
 * One peer's `FILE_CHANNEL`, seen from the sending side. What it takes arrives in order. Both reject
 * with `signal.reason` when it is aborted.
 * @typedef {object} FileWire
 * @property {(data: object, options: {signal: AbortSignal}) => Promise<unknown>} request  JSON-able there
 *   and back; rejects with `RequestFailed`, `PeerClosed`, `MeshClosed`
 * @property {(data: Uint8Array, options: {signal: AbortSignal}) => Promise<unknown>} send  waits for
 *   room; rejects with `PeerClosed`, `MeshClosed`
 */

/**
 * The answer to a request, given once, now or later. Too late, nothing comes of it.
 * @typedef {object} FileAnswer
 * @property {(data: object) => unknown} reply  answer with something JSON-able
 * @property {(text: string) => unknown} error  answer with an error: `RequestFailed` at the other side
 */

/** @typedef {(progress: FileProgress) => unknown} FileReport */

/** Lets the page do something else now and then, in a background tab as well. */
class FileBreath {
  #turns = new Turns();
  #since = performance.now();

  /** To be awaited after each piece of work. */
  async pause() {
    if (performance.now() - this.#since < FILE_WORK) return;
    await this.#turns.next();
    this.#since = performance.now();
  }
}

// --- SHA-256 ---------------------------------------------------------------------------------------

// prettier-ignore
const SHA256_ROUNDS = Int32Array.of(
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
);

/**
 * The SHA-256 (FIPS 180-4) of bytes that come one after another.
 *
 * `crypto.subtle` takes all of them at once, and is not there in a page over http.
 */
class Sha256 {
  // prettier-ignore
  #state = Int32Array.of(
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
  );
  #words = new Int32Array(64);
  /** What does not fill a block yet. */
  #rest = new Uint8Array(64);
  #used = 0;
  #size = 0;

  /**
   * Adds bytes.
   * @param {Uint8Array} data
   */
  update(data) {
    this.#size += data.length;
    let at = 0;
    if (this.#used) {
      at = Math.min(64 - this.#used, data.length);
      this.#rest.set(data.subarray(0, at), this.#used);
      this.#used += at;
      if (this.#used < 64) return;
      this.#compress(this.#rest, 0, 64);
      this.#used = 0;
    }
    const end = data.length - ((data.length - at) % 64);
    if (at < end) this.#compress(data, at, end);
    if (end < data.length) {
      this.#rest.set(data.subarray(end));
      this.#used = data.length - end;
    }
  }

  /** The sum of all so far, in lower-case hexadecimal; more may be added. */
  get hex() {
    const state = this.#state.slice();
    const last = new Uint8Array(this.#used < 56 ? 64 : 128);
    last.set(this.#rest.subarray(0, this.#used));
    last[this.#used] = 0x80;
    const view = new DataView(last.buffer);
    view.setUint32(last.length - 8, Math.floor(this.#size / 2 ** 29));
    view.setUint32(last.length - 4, (this.#size % 2 ** 29) * 8);
    this.#compress(last, 0, last.length);
    const sum = Array.from(this.#state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
    this.#state = state;
    return sum;
  }

  /**
   * Takes in whole blocks.
   * @param {Uint8Array} data
   * @param {number} at
   * @param {number} end
   */
  #compress(data, at, end) {
    const w = this.#words;
    const state = this.#state;
    // One by one: destructuring goes by way of an iterator, and makes all of it four times as slow.
    let h0 = state[0];
    let h1 = state[1];
    let h2 = state[2];
    let h3 = state[3];
    let h4 = state[4];
    let h5 = state[5];
    let h6 = state[6];
    let h7 = state[7];
    while (at < end) {
      for (let i = 0; i < 16; i++, at += 4) {
        w[i] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
      }
      for (let i = 16; i < 64; i++) {
        const x = w[i - 15];
        const y = w[i - 2];
        const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
      }
      let a = h0;
      let b = h1;
      let c = h2;
      let d = h3;
      let e = h4;
      let f = h5;
      let g = h6;
      let h = h7;
      // Eight rounds at once, each with the names one place further: moving the values costs a fifth.
      // prettier-ignore
      for (let i = 0; i < 64; i += 8) {
        h = (h + (((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7))) + (g ^ (e & (f ^ g))) + SHA256_ROUNDS[i] + w[i]) | 0;
        d = (d + h) | 0;
        h = (h + (((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10))) + ((a & b) | (c & (a | b)))) | 0;
        g = (g + (((d >>> 6) | (d << 26)) ^ ((d >>> 11) | (d << 21)) ^ ((d >>> 25) | (d << 7))) + (f ^ (d & (e ^ f))) + SHA256_ROUNDS[i + 1] + w[i + 1]) | 0;
        c = (c + g) | 0;
        g = (g + (((h >>> 2) | (h << 30)) ^ ((h >>> 13) | (h << 19)) ^ ((h >>> 22) | (h << 10))) + ((h & a) | (b & (h | a)))) | 0;
        f = (f + (((c >>> 6) | (c << 26)) ^ ((c >>> 11) | (c << 21)) ^ ((c >>> 25) | (c << 7))) + (e ^ (c & (d ^ e))) + SHA256_ROUNDS[i + 2] + w[i + 2]) | 0;
        b = (b + f) | 0;
        f = (f + (((g >>> 2) | (g << 30)) ^ ((g >>> 13) | (g << 19)) ^ ((g >>> 22) | (g << 10))) + ((g & h) | (a & (g | h)))) | 0;
        e = (e + (((b >>> 6) | (b << 26)) ^ ((b >>> 11) | (b << 21)) ^ ((b >>> 25) | (b << 7))) + (d ^ (b & (c ^ d))) + SHA256_ROUNDS[i + 3] + w[i + 3]) | 0;
        a = (a + e) | 0;
        e = (e + (((f >>> 2) | (f << 30)) ^ ((f >>> 13) | (f << 19)) ^ ((f >>> 22) | (f << 10))) + ((f & g) | (h & (f | g)))) | 0;
        d = (d + (((a >>> 6) | (a << 26)) ^ ((a >>> 11) | (a << 21)) ^ ((a >>> 25) | (a << 7))) + (c ^ (a & (b ^ c))) + SHA256_ROUNDS[i + 4] + w[i + 4]) | 0;
        h = (h + d) | 0;
        d = (d + (((e >>> 2) | (e << 30)) ^ ((e >>> 13) | (e << 19)) ^ ((e >>> 22) | (e << 10))) + ((e & f) | (g & (e | f)))) | 0;
        c = (c + (((h >>> 6) | (h << 26)) ^ ((h >>> 11) | (h << 21)) ^ ((h >>> 25) | (h << 7))) + (b ^ (h & (a ^ b))) + SHA256_ROUNDS[i + 5] + w[i + 5]) | 0;
        g = (g + c) | 0;
        c = (c + (((d >>> 2) | (d << 30)) ^ ((d >>> 13) | (d << 19)) ^ ((d >>> 22) | (d << 10))) + ((d & e) | (f & (d | e)))) | 0;
        b = (b + (((g >>> 6) | (g << 26)) ^ ((g >>> 11) | (g << 21)) ^ ((g >>> 25) | (g << 7))) + (a ^ (g & (h ^ a))) + SHA256_ROUNDS[i + 6] + w[i + 6]) | 0;
        f = (f + b) | 0;
        b = (b + (((c >>> 2) | (c << 30)) ^ ((c >>> 13) | (c << 19)) ^ ((c >>> 22) | (c << 10))) + ((c & d) | (e & (c | d)))) | 0;
        a = (a + (((f >>> 6) | (f << 26)) ^ ((f >>> 11) | (f << 21)) ^ ((f >>> 25) | (f << 7))) + (h ^ (f & (g ^ h))) + SHA256_ROUNDS[i + 7] + w[i + 7]) | 0;
        e = (e + a) | 0;
        a = (a + (((b >>> 2) | (b << 30)) ^ ((b >>> 13) | (b << 19)) ^ ((b >>> 22) | (b << 10))) + ((b & c) | (d & (b | c)))) | 0;
      }
      h0 = (h0 + a) | 0;
      h1 = (h1 + b) | 0;
      h2 = (h2 + c) | 0;
      h3 = (h3 + d) | 0;
      h4 = (h4 + e) | 0;
      h5 = (h5 + f) | 0;
      h6 = (h6 + g) | 0;
      h7 = (h7 + h) | 0;
    }
    state.set([h0, h1, h2, h3, h4, h5, h6, h7]);
  }
}

// --- what is said ----------------------------------------------------------------------------------

/** @typedef {{do: "offer", name: string, size: number, sha256: string}} FileOffer */
/** @typedef {FileOffer | {do: "finish"} | {do: "stop", why: string}} FileRequest */

/** @param {string} text */
const malformedFile = (text) =>
  new ProtocolError(`malformed message about a file: ${text}`, { code: "bad_file" });

/**
 * @param {unknown} data
 * @returns {Record<string, unknown>}
 */
function fileObject(data) {
  if (typeof data !== "object" || data === null || Array.isArray(data)) {
    throw malformedFile("it is no object");
  }
  return /** @type {Record<string, unknown>} */ (data);
}

/** @param {unknown} value */
const isFileSize = (value) => Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;

/**
 * @param {unknown} data
 * @returns {FileRequest}
 */
function decodeFileRequest(data) {
  const message = fileObject(data);
  switch (message.do) {
    case "offer": {
      const { name, size, sha256 } = message;
      if (typeof name !== "string") throw malformedFile("`name` is no text");
      if (!isFileSize(size)) throw malformedFile("`size` is no whole number from 0, below 2^53");
      if (typeof sha256 !== "string" || !/^[0-9a-f]{64}$/.test(sha256)) {
        throw malformedFile("`sha256` is not 64 lower-case hexadecimal digits");
      }
      return { do: "offer", name, size: /** @type {number} */ (size), sha256 };
    }
    case "finish":
      return { do: "finish" };
    case "stop": {
      const { why } = message;
      // Two units may be one character.
      if (typeof why !== "string" || why.length > 2 * MAX_FILE_WHY || [...why].length > MAX_FILE_WHY) {
        throw malformedFile(`\`why\` is no text of at most ${MAX_FILE_WHY} characters`);
      }
      return { do: "stop", why };
    }
    default:
      throw malformedFile("`do` is none of offer, finish, stop");
  }
}

/** @param {unknown} data */
function decodeFileAccepted(data) {
  const { offset, chunk } = fileObject(data);
  if (!isFileSize(offset)) throw malformedFile("`offset` is no whole number from 0, below 2^53");
  if (!Number.isInteger(chunk) || /** @type {number} */ (chunk) < 1) {
    throw malformedFile("`chunk` is no whole number from 1");
  }
  return { offset: /** @type {number} */ (offset), chunk: /** @type {number} */ (chunk) };
}

/** @param {unknown} data */
function decodeFileFinished(data) {
  const { again } = fileObject(data);
  if (typeof again !== "boolean") throw malformedFile("`again` is neither true nor false");
  return { again };
}

/**
 * What makes a name unfit to be stored under; null when it is fit.
 * @param {string} name
 */
function fileNameFault(name) {
  if (["", ".", ".."].includes(name) || /[/\\]/.test(name)) return "is not the plain name of a file";
  // A home directory is read by programs that obey such files; nobody may plant them.
  if (name.startsWith(".")) return "begins with a dot, which hides a file";
  // Those of direction show "exe.fdp" for what ends in ".exe".
  if (/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]/u.test(name)) {
    return "has control characters or half characters in it";
  }
  if (utf8Length(name) > MAX_FILE_NAME) return `has more than ${MAX_FILE_NAME} bytes of UTF-8`;
  return null;
}

// --- Blobs and sinks -------------------------------------------------------------------------------

/** @param {unknown} value */
const isBlob = (value) => ["[object Blob]", "[object File]"].includes(Object.prototype.toString.call(value));

/** A Blob to send. */
class FileSource {
  /** What reading it failed with. @type {unknown} */
  failure = null;
  #blob;

  /** @param {Blob} blob */
  constructor(blob) {
    this.#blob = blob;
    this.size = blob.size;
  }

  /**
   * The sum of all of it.
   * @param {AbortSignal | null} signal
   */
  async sha256(signal) {
    const sum = new Sha256();
    const breath = new FileBreath();
    for (let at = 0; at < this.size; at += FILE_BLOCK) {
      sum.update(await abortable(this.read(at, FILE_BLOCK), signal));
      await breath.pause();
    }
    return sum.hex;
  }

  /**
   * The next bytes from there; as many as are asked for, or up to its end.
   * @param {number} position
   * @param {number} most
   */
  async read(position, most) {
    const end = Math.min(this.size, position + most);
    let data;
    try {
      data = new Uint8Array(await this.#blob.slice(position, end).arrayBuffer());
    } catch (error) {
      this.failure = error; // such as NotReadableError: the file has changed, or may not be read
      throw error;
    }
    if (data.length < end - position) throw new TransferFailed("the file became shorter while it was sent");
    return data;
  }
}

/**
 * Makes a Blob of a file.
 *
 * Kept by the application and given to `receiveFile` again after a transfer that broke, the same file
 * goes on where it was.
 * @implements {FileSink}
 */
class BlobSink {
  /** @type {Blob[]} */
  #blobs = [];
  /** @type {Uint8Array<ArrayBuffer>[]} */
  #pieces = [];
  #collected = 0;
  #sha256 = "";

  /** The file as far as it is here. */
  get blob() {
    this.#hand();
    return new Blob(this.#blobs);
  }

  /** @param {FileOffered} offer */
  begin({ sha256 }) {
    if (sha256 !== this.#sha256) this.empty();
    this.#sha256 = sha256;
    return this.blob;
  }

  /** @param {Uint8Array} bytes */
  write(bytes) {
    this.#pieces.push(/** @type {Uint8Array<ArrayBuffer>} */ (bytes));
    this.#collected += bytes.length;
    if (this.#collected >= FILE_PIECE) this.#hand();
  }

  /** Hands what is collected to the browser. */
  #hand() {
    if (!this.#collected) return;
    this.#blobs.push(new Blob(this.#pieces));
    this.#pieces = [];
    this.#collected = 0;
  }

  empty() {
    this.#blobs = [];
    this.#pieces = [];
    this.#collected = 0;
  }
}

/**
 * @param {FileSink | WritableStream} sink
 * @returns {sink is WritableStream}
 */
const isWritableStream = (sink) => "getWriter" in sink;

/**
 * A sink that writes to a stream, and closes or aborts it.
 * @param {WritableStream<Uint8Array>} stream
 * @returns {FileSink}
 */
function streamSink(stream) {
  const writer = stream.getWriter();
  return {
    write: (bytes) => writer.write(bytes),
    close: () => writer.close(),
    abort: (reason) => writer.abort(reason),
  };
}

/** Where an incoming file goes, and how far it is. */
class FileStore {
  /** Bytes that are in the sink and in the sum. */
  length = 0;
  /** What the sink threw. @type {unknown} */
  failure = null;
  #sum = new Sha256();
  /** @type {FileSink | null} */
  #sink = null;
  /** The sink can be aborted in the middle of a write. */
  #isStream = false;
  /** What is being done with the sink: who is aborted does not wait for it. */
  #inHand = Promise.resolve();
  #target;
  #offer;

  /**
   * @param {FileTarget} target
   * @param {FileOffered} offer
   */
  constructor(target, offer) {
    this.#target = target;
    this.#offer = offer;
  }

  /** Whether the sum is that of the offer. */
  get right() {
    return this.#sum.hex === this.#offer.sha256;
  }

  /**
   * Looks for what an earlier transfer left.
   * @param {AbortSignal | null} signal
   */
  open(signal) {
    return this.#begin(this.#open(signal));
  }

  /** @param {AbortSignal | null} signal */
  async #open(signal) {
    const target = this.#target;
    const place = await this.#do(() => (typeof target === "function" ? target(this.#offer) : target));
    const sink = await this.#do(() => (isWritableStream(place) ? streamSink(place) : place));
    this.#sink = sink;
    this.#isStream = sink !== place;
    signal?.throwIfAborted();
    const found = await this.#do(() => sink.begin?.(this.#offer));
    if (!found?.size) return;
    if (!sink.empty) throw new ConfigError("a sink whose begin() gives something needs empty()");
    if (found.size > this.#offer.size) {
      await this.empty();
      return;
    }
    const breath = new FileBreath();
    while (this.length < found.size) {
      const piece = found.slice(this.length, this.length + FILE_BLOCK);
      const data = new Uint8Array(await abortable(this.#do(() => piece.arrayBuffer()), signal));
      this.#sum.update(data);
      this.length += data.length;
      await breath.pause();
    }
  }

  /**
   * Adds to the end.
   * @param {Uint8Array} bytes
   */
  write(bytes) {
    return this.#begin(this.#write(bytes));
  }

  /** @param {Uint8Array} bytes */
  async #write(bytes) {
    this.#sum.update(bytes);
    await this.#do(() => this.#sink?.write(bytes));
    this.length += bytes.length;
  }

  /** Begins anew. */
  async empty() {
    await this.#do(() => this.#sink?.empty?.());
    this.#sum = new Sha256();
    this.length = 0;
  }

  /** All of it is there and right. */
  async publish() {
    await this.#do(() => this.#sink?.close?.());
  }

  /**
   * It ended early; what is wrong is not kept.
   * @param {unknown} reason
   * @param {{remove: boolean}} options
   */
  async abort(reason, { remove }) {
    if (!this.#isStream) await this.#inHand;
    if (remove) await this.#sink?.empty?.();
    await this.#sink?.abort?.(reason);
  }

  /** @param {Promise<void>} work */
  #begin(work) {
    this.#inHand = work.catch(() => {}); // who waits for it is told
    return work;
  }

  /**
   * @template T
   * @param {() => T} call
   */
  async #do(call) {
    try {
      return await call();
    } catch (error) {
      this.failure = error;
      throw error;
    }
  }
}

// --- progress --------------------------------------------------------------------------------------

/** Reports progress, but not too often. */
class FileMeter {
  #report;
  #about;
  #next = -Infinity;

  /**
   * @param {FileReport | null} report
   * @param {{peer: FilePeer, name: string, size: number}} about
   */
  constructor(report, { peer, name, size }) {
    this.#report = report;
    this.#about = { peer, name, size };
  }

  /**
   * So far it is; told when the last report is some time ago.
   * @param {number} done
   */
  at(done) {
    const now = performance.now();
    if (now < this.#next) return;
    this.#next = now + FILE_REPORT_EVERY;
    this.tell(done);
  }

  /**
   * Tells it in any case.
   * @param {number} done
   */
  tell(done) {
    this.#report?.({ kind: "FileProgress", ...this.#about, done });
  }
}

// --- transfers -------------------------------------------------------------------------------------

/** @typedef {{again: boolean} | string} FileOutcome  an answer to `finish`, or the text of an error */

/** A file that one peer offers or sends. */
class IncomingFile {
  accepted = false;
  /** Nothing is made of what still comes. */
  over = false;
  /** What ended it from outside. @type {Error | null} */
  error = null;
  /** Bytes of the file that the peer has sent, with those that were here. */
  #arrived = 0;
  /** @type {[payload: Uint8Array, taken: () => void][]} */
  #chunks = [];
  #bell = new Bell();
  /** Takes the outcome, once the peer has asked for it. @type {FileAnswer | null} */
  #finishing = null;
  /** The outcome, until the peer asks for it. @type {FileOutcome | null} */
  #outcome = null;
  /** Takes the answer to the offer. */
  #offered;

  /**
   * @param {FilePeer} peer
   * @param {FileOffer} offer
   * @param {FileAnswer} offered
   */
  constructor(peer, { name, size, sha256 }, offered) {
    this.peer = peer;
    /** @type {FileOffered} */
    this.offer = { kind: "FileOffered", peerId: peer.id, name, size, sha256 };
    this.#offered = offered;
  }

  /**
   * Lets it come from there on, in messages of so many bytes at most.
   * @param {number} offset
   * @param {number} chunk
   */
  accept(offset, chunk) {
    this.check();
    this.accepted = true;
    this.#arrived = offset;
    this.#offered.reply({ offset, chunk });
  }

  /** Throws what ended it from outside. */
  check() {
    if (this.error !== null) throw this.error;
  }

  /** The peer never noticed that it was given up, and waits for an answer. */
  unanswered() {
    const why = "the receiver had given the sender up";
    if (this.accepted) this.#settle(why);
    else this.#offered.error(why);
  }

  /** Lets it come once more, from its beginning. */
  again() {
    this.#arrived = 0;
    this.#settle({ again: true });
  }

  /** All is well. */
  finish() {
    if (this.over) return;
    this.over = true;
    this.#settle({ again: false });
  }

  /**
   * No, or no more.
   * @param {string} why
   */
  refuse(why) {
    if (this.over) return;
    this.over = true;
    this.#drop();
    if (this.accepted) this.#settle(why);
    else this.#offered.error(why);
  }

  /**
   * It is over for a reason that is not ours.
   * @param {Error} error
   */
  fail(error) {
    this.over = true;
    this.#drop();
    this.error ??= error;
    this.#bell.ring();
  }

  /**
   * The peer asks how it comes out.
   * @param {FileAnswer} answer
   */
  asked(answer) {
    if (!this.accepted || this.#finishing !== null) {
      throw new ProtocolError("asked for the end of a file out of turn", { code: "bad_file" });
    }
    this.#finishing = answer;
    if (this.#outcome !== null) this.#settle(this.#outcome);
  }

  /** @param {FileOutcome} outcome */
  #settle(outcome) {
    const answer = this.#finishing;
    this.#finishing = null;
    this.#outcome = answer === null ? outcome : null;
    if (typeof outcome === "string") answer?.error(outcome);
    else answer?.reply(outcome);
  }

  /**
   * The next bytes of it.
   * @param {Uint8Array} payload
   * @param {() => void} taken
   */
  add(payload, taken) {
    if (!this.accepted) {
      throw new ProtocolError("bytes of a file that was not accepted", { code: "bad_file" });
    }
    const missing = this.offer.size - this.#arrived;
    if (!payload.length || payload.length > missing) {
      throw new ProtocolError(`${payload.length} bytes where ${missing} of the file are missing`, {
        code: "bad_file",
      });
    }
    this.#arrived += payload.length;
    if (this.over) {
      taken();
    } else {
      this.#chunks.push([payload, taken]);
      this.#bell.ring();
    }
  }

  #drop() {
    for (const [, taken] of this.#chunks.splice(0)) taken();
  }

  /**
   * Writes what comes, as it comes, until all is there. Throws what ended it early.
   * @param {FileStore} store
   * @param {FileMeter} meter
   * @param {AbortSignal | null} signal
   */
  async writeTo(store, meter, signal) {
    const breath = new FileBreath();
    while (store.length < this.offer.size) {
      signal?.throwIfAborted();
      const next = this.#chunks.shift();
      if (next === undefined) {
        this.check();
        await this.#bell.wait(signal);
        continue;
      }
      const [payload, taken] = next;
      try {
        await abortable(store.write(payload), signal);
      } finally {
        taken();
      }
      meter.at(store.length);
      await breath.pause();
    }
  }
}

/**
 * All transfers of one manager. `FILE_CHANNEL`'s messages go in by `request` and `data`.
 *
 * To each peer and from each peer one file travels at a time. `maxOffers` is how many offers wait for
 * `receive`, `chunk` the most bytes of a file that are sent and taken in one message; `onEvent` is told
 * of offers.
 */
class Files {
  #maxOffers;
  #chunk;
  #tell;
  /** What whoever asks for something gets, once it is closed. @type {Error | null} */
  #closed = null;
  /**
   * Resolves when the last file that waits to be sent to the peer is done.
   * @type {WeakMap<FilePeer, Promise<void>>}
   */
  #turns = new WeakMap();
  /**
   * Tell the peer that a file does not come. The next one is not offered before that.
   * @type {Map<FilePeer, Promise<void>>}
   */
  #farewells = new Map();
  /** Aborts the farewells. */
  #ending = new AbortController();
  /** The latest of each peer. @type {Map<FilePeer, IncomingFile>} */
  #incoming = new Map();
  /**
   * What was under way from those that left, by peer id and incarnation.
   * @type {Map<string, IncomingFile>}
   */
  #broken = new Map();
  /** Those that nobody has taken yet. @type {IncomingFile[]} */
  #offers = [];
  #bell = new Bell();

  /**
   * @param {object} [options]
   * @param {number} [options.maxOffers]
   * @param {number} [options.chunk]
   * @param {(event: FileOffered | FileWithdrawn) => unknown} [options.onEvent]
   */
  constructor({ maxOffers = MAX_FILE_OFFERS, chunk = FILE_CHUNK, onEvent = () => {} } = {}) {
    this.#maxOffers = maxOffers;
    this.#chunk = chunk;
    this.#tell = onEvent;
  }

  /** Offers that wait for `receive` or `refuse`, the oldest first. One of each peer at most. */
  get offers() {
    return this.#offers.map((incoming) => incoming.offer);
  }

  // --- sending ---

  /**
   * Sends a File or Blob; resolves when the other side has stored and checked it.
   *
   * `name` is what it is offered as, by default that of the File. Waits for its turn when other files
   * go to this peer, and for the other side to accept it. `onProgress` is called at most ten times a
   * second, and at the beginning and the end; what it throws ends the transfer.
   *
   * Throws `TransferFailed` when the other side refuses or stops it, or the file became shorter
   * meanwhile, `PeerClosed` when the peer is gone, `MeshClosed`, `ConfigError` for a name that no
   * receiver takes or what is no Blob, and what the browser throws when it can't be read, such as
   * `NotReadableError` for a file that changed. When `signal` is aborted, the other side is told; what
   * it has stored stays there, and the next transfer of the same file goes on from it.
   * @param {FilePeer} peer
   * @param {FileWire} wire
   * @param {Blob} blob
   * @param {{name?: string | null, onProgress?: FileReport | null, signal?: AbortSignal | null}} [options]
   * @returns {Promise<FileSent>}
   */
  async send(peer, wire, blob, { name = null, onProgress = null, signal: given = null } = {}) {
    if (!isBlob(blob)) throw new ConfigError("what is sent as a file is a File or a Blob");
    const offered = name ?? /** @type {Partial<File>} */ (blob).name ?? null;
    if (offered === null) throw new ConfigError("a Blob has no name: give it one as name");
    const fault = fileNameFault(offered);
    if (fault) throw new ConfigError(`the name ${repr(offered)} ${fault}: give another as name`);
    this.#checkOpen();
    const signal = given ?? new AbortController().signal;
    signal.throwIfAborted();
    const before = this.#turns.get(peer);
    let done = () => {};
    const mine = new Promise((/** @type {(value: void) => void} */ resolve) => (done = resolve));
    this.#turns.set(peer, before ? before.then(() => mine) : mine);
    try {
      if (before) await abortable(before, signal);
      this.#checkOpen();
      const source = new FileSource(blob);
      const { size } = source;
      const sha256 = await source.sha256(signal);
      const meter = new FileMeter(onProgress, { peer, name: offered, size });
      /** @type {FileOffer} */
      const offer = { do: "offer", name: offered, size, sha256 };
      const way = { wire, source, meter, chunk: this.#chunk, signal };
      const resumedFrom = await this.#offer(peer, way, offer);
      return { kind: "FileSent", name: offered, size, sha256, resumedFrom };
    } finally {
      done();
    }
  }

  /**
   * Sends it to its end, or sees to it that the other side knows how it ended.
   * @param {FilePeer} peer
   * @param {FileWay} way
   * @param {FileOffer} offer
   */
  async #offer(peer, way, offer) {
    const farewell = this.#farewells.get(peer);
    if (farewell) await abortable(farewell, way.signal);
    this.#checkOpen();
    try {
      return await sendFile(way, offer);
    } catch (error) {
      // The other side has ended it.
      if (error instanceof RequestFailed) throw new TransferFailed(error.message);
      const nobodyToTell = [PeerClosed, MeshClosed, TooManyChannels, MessageTooLarge].some(
        (kind) => error instanceof kind,
      );
      if (!nobodyToTell && this.#closed === null) {
        // Not waited for here: the peer may be out of reach, and an abort is for now.
        this.#farewell(peer, way.wire, whyFileEnded(error, way.source.failure, "sender"));
      }
      throw error;
    }
  }

  /**
   * @param {FilePeer} peer
   * @param {FileWire} wire
   * @param {string} why
   */
  #farewell(peer, wire, why) {
    // Gone: then it knows. And what it says to it changes nothing.
    const said = wire.request({ do: "stop", why }, { signal: this.#ending.signal }).then(
      () => {},
      () => {},
    );
    const farewell = said.then(() => {
      if (this.#farewells.get(peer) === farewell) this.#farewells.delete(peer);
    });
    this.#farewells.set(peer, farewell);
  }

  // --- receiving ---

  /**
   * Waits for the next file that a peer offers, and receives it.
   *
   * `sender` is the id of the peer to take it from, any by default. `timeout` is how long to wait for
   * an offer, in seconds, null for no limit. The file becomes a Blob, or goes to `sink`: a
   * `WritableStream`, which is closed at the end or aborted, a `FileSink`, or a function that gives one
   * of these for an offer. `onProgress` is as in `Files.send`.
   *
   * Throws `MeshTimeout`, `TransferFailed` when the sender stops or what arrived is not what was sent,
   * `PeerClosed` when the sender is gone, `MeshClosed`, and what the sink throws. When `signal` is
   * aborted, the sender is told, and the sink keeps what it has.
   * @param {object} [options]
   * @param {string | null} [options.sender]
   * @param {number | null} [options.timeout]
   * @param {FileReport | null} [options.onProgress]
   * @param {FileTarget | null} [options.sink]
   * @param {AbortSignal | null} [options.signal]
   * @returns {Promise<FileReceived>}
   */
  async receive({ sender = null, timeout = null, onProgress = null, sink = null, signal = null } = {}) {
    if (sink !== null && !(typeof sink === "function" || "write" in sink || "getWriter" in sink)) {
      const kinds = "a WritableStream, an object with write(bytes), or a function that gives one";
      throw new ConfigError(`sink is ${kinds}`);
    }
    const incoming = await this.#nextOffer(sender, timeout, signal);
    const { peer, offer } = incoming;
    const blobSink = new BlobSink();
    const store = new FileStore(sink ?? blobSink, offer);
    const meter = new FileMeter(onProgress, { peer, ...offer });
    let wrong = false;
    let resumedFrom;
    try {
      await abortable(store.open(signal), signal);
      resumedFrom = await receiveFile(incoming, store, meter, this.#chunk, signal);
      if (!store.right) {
        wrong = true;
        const what = `what arrived as ${repr(offer.name)}`;
        throw new TransferFailed(`${what} is not what was sent: its SHA-256 is another`);
      }
      await store.publish();
      incoming.finish();
    } catch (error) {
      const isOurs = wrong && error instanceof TransferFailed;
      incoming.refuse(isOurs ? error.message : whyFileEnded(error, store.failure, "receiver"));
      const end = store.abort(error, { remove: wrong });
      // The first error is what counts. A sink that hangs keeps nobody, and is told when it is done.
      await scoped({ timeout: FILE_END_PATIENCE }, (scope) => abortable(end, scope)).catch(() => {});
      throw error;
    }
    meter.tell(offer.size);
    const { name, size, sha256 } = offer;
    const blob = sink === null ? blobSink.blob : null;
    return { kind: "FileReceived", name, size, sha256, sender: peer, resumedFrom, blob };
  }

  /**
   * Refuses the file that a peer offers: `TransferFailed` with this text at the sender. Returns whether
   * there was one that nobody had taken.
   * @param {string} peerId
   * @param {string} [why]
   */
  refuse(peerId, why = "the receiver does not want it") {
    const at = this.#offers.findIndex((incoming) => incoming.peer.id === peerId);
    if (at < 0) return false;
    const [incoming] = this.#offers.splice(at, 1);
    incoming.refuse(why);
    return true;
  }

  /**
   * @param {string | null} sender
   * @param {number | null} timeout
   * @param {AbortSignal | null} signal
   */
  async #nextOffer(sender, timeout, signal) {
    const late = () => {
      const whom = sender === null ? "" : ` from ${repr(sender)}`;
      return new MeshTimeout(`waited ${timeout} s for a file${whom}`);
    };
    return scoped({ timeout, signal, late }, async (signal) => {
      for (;;) {
        this.#checkOpen();
        const at = this.#offers.findIndex(({ peer }) => sender === null || peer.id === sender);
        if (at >= 0) return this.#offers.splice(at, 1)[0];
        await this.#bell.wait(signal);
      }
    });
  }

  // --- from the shell ---

  /**
   * A request arrived on `FILE_CHANNEL`. Throws `ProtocolError`; then nothing has changed.
   * @param {FilePeer} peer
   * @param {unknown} data
   * @param {FileAnswer} answer
   */
  request(peer, data, answer) {
    if (this.#closed !== null) {
      answer.error("the receiver is closed");
      return;
    }
    const message = decodeFileRequest(data);
    const incoming = this.#incoming.get(peer) ?? null;
    switch (message.do) {
      case "offer":
        if (incoming !== null && !incoming.over) {
          throw new ProtocolError("a file was offered before the last", { code: "bad_file" });
        }
        this.#offered(new IncomingFile(peer, message, answer));
        break;
      case "finish":
        if (incoming === null) {
          throw new ProtocolError("the end of a file that was not offered", { code: "bad_file" });
        }
        incoming.asked(answer);
        break;
      case "stop":
        if (incoming !== null) {
          incoming.refuse("it was stopped");
          this.#end(incoming, new TransferFailed(message.why));
        }
        answer.reply({});
        break;
    }
  }

  /**
   * Bytes arrived on `FILE_CHANNEL`; `taken` is called once they are stored, or dropped.
   *
   * That may be after `peerLeft` and after `close`. Throws `ProtocolError`; then nothing has changed
   * and `taken` is not called.
   * @param {FilePeer} peer
   * @param {Uint8Array} payload
   * @param {() => void} taken
   */
  data(peer, payload, taken) {
    if (this.#closed !== null) {
      taken();
      return;
    }
    const incoming = this.#incoming.get(peer);
    if (!incoming) throw new ProtocolError("bytes of a file that was not offered", { code: "bad_file" });
    incoming.add(payload, taken);
  }

  /**
   * The peer is there. One that left as far as we knew, and did not notice, hears that what it sends
   * came to its end here; what still comes of it is dropped.
   * @param {FilePeer} peer
   */
  peerJoined(peer) {
    const key = JSON.stringify([peer.id, peer.incarnation]);
    const incoming = this.#broken.get(key);
    if (!incoming) return;
    this.#broken.delete(key);
    this.#incoming.set(peer, incoming);
    incoming.unanswered();
  }

  /**
   * The peer is gone, and what it sent is over.
   * @param {FilePeer} peer
   */
  peerLeft(peer) {
    const incoming = this.#incoming.get(peer);
    if (!incoming) return;
    this.#incoming.delete(peer);
    if (!incoming.over) {
      this.#broken.set(JSON.stringify([peer.id, peer.incarnation]), incoming);
      if (this.#broken.size > MAX_BROKEN_FILES) {
        for (const oldest of this.#broken.keys()) {
          this.#broken.delete(oldest);
          break;
        }
      }
    }
    const reason = peer.closedReason || "closed";
    this.#end(incoming, new PeerClosed(`peer ${repr(peer.id)} is gone (${reason})`, { reason }));
  }

  /**
   * The manager closes: whoever receives gets `error`, or `MeshClosed`.
   *
   * To be called before the peers go, which would be told instead. Who sends hears it from its wire.
   * @param {Error | null} [error]
   */
  end(error = null) {
    this.#closed ??= error ?? new MeshClosed("the manager is closed");
    for (const incoming of this.#incoming.values()) this.#end(incoming, this.#closed);
    this.#incoming.clear();
    this.#bell.ring();
  }

  /** Ends it, and leaves nothing under way. May be called more than once. */
  async close() {
    this.end();
    this.#ending.abort(this.#closed);
    await Promise.all(this.#farewells.values());
  }

  /** @param {IncomingFile} incoming */
  #offered(incoming) {
    const { name } = incoming.offer;
    const fault = fileNameFault(name);
    this.#incoming.set(incoming.peer, incoming);
    if (fault) {
      incoming.refuse(`the name ${repr([...name.slice(0, 80)].slice(0, 40).join(""))} ${fault}`);
    } else if (this.#offers.length >= this.#maxOffers) {
      incoming.refuse(`${this.#maxOffers} files wait to be received already`);
    } else {
      this.#offers.push(incoming);
      this.#tell(incoming.offer);
      this.#bell.ring();
    }
  }

  /**
   * @param {IncomingFile} incoming
   * @param {Error} error
   */
  #end(incoming, error) {
    const at = this.#offers.indexOf(incoming);
    incoming.fail(error);
    if (at < 0) return;
    this.#offers.splice(at, 1);
    const { peerId, name } = incoming.offer;
    this.#tell({ kind: "FileWithdrawn", peerId, name, reason: error.message });
  }

  #checkOpen() {
    if (this.#closed !== null) throw this.#closed;
  }
}

/**
 * What the other side reads of what ended a transfer on this side.
 * @param {unknown} error
 * @param {unknown} failure  what reading or storing failed with
 * @param {"sender" | "receiver"} side
 */
function whyFileEnded(error, failure, side) {
  if (failure !== null && error === failure) {
    const verb = side === "receiver" ? "store" : "read";
    // Not all of it: what is here is nobody's business.
    return `the ${side} can't ${verb} it: ${error instanceof Error ? error.name : "error"}`;
  }
  return error instanceof TransferFailed
    ? `the file changed at the ${side} while it was sent`
    : `the ${side} stopped`;
}

/**
 * Receives what is missing, and all of it when that does not fit what was there.
 *
 * Returns how much of what was there is in it.
 * @param {IncomingFile} incoming
 * @param {FileStore} store
 * @param {FileMeter} meter
 * @param {number} chunk
 * @param {AbortSignal | null} signal
 */
async function receiveFile(incoming, store, meter, chunk, signal) {
  const found = store.length;
  incoming.accept(found, chunk);
  meter.at(found);
  await incoming.writeTo(store, meter, signal);
  if (!found || store.right) return found;
  await store.empty();
  incoming.again();
  await incoming.writeTo(store, meter, signal);
  return 0;
}

/**
 * What a file is sent with.
 * @typedef {object} FileWay
 * @property {FileWire} wire
 * @property {FileSource} source
 * @property {FileMeter} meter
 * @property {number} chunk  bytes in one message, at most
 * @property {AbortSignal} signal
 */

/**
 * Offers it and sends what is wanted of it. Returns how much the other side had.
 * @param {FileWay} way
 * @param {FileOffer} offer
 */
async function sendFile(way, offer) {
  const { wire, meter, signal } = way;
  const accepted = decodeFileAccepted(await wire.request(offer, { signal }));
  const { offset } = accepted;
  const chunk = Math.min(way.chunk, accepted.chunk);
  if (offset > offer.size) {
    throw new ProtocolError(`offset ${offset} in a file of ${offer.size} bytes`, { code: "bad_file" });
  }
  meter.at(offset);
  let sentWhole = !offset;
  let { again } = await passFile(way, offset, chunk);
  if (again && !sentWhole) {
    sentWhole = true;
    ({ again } = await passFile(way, 0, chunk));
  }
  if (again) throw new ProtocolError("a file that was sent whole is wanted again", { code: "bad_file" });
  meter.tell(offer.size);
  return sentWhole ? 0 : offset;
}

/**
 * Sends everything from there. Returns what the other side makes of it.
 * @param {FileWay} way
 * @param {number} offset
 * @param {number} chunk
 */
async function passFile(way, offset, chunk) {
  const inner = new AbortController();
  const stop = () => inner.abort(way.signal.reason);
  way.signal.addEventListener("abort", stop);
  if (way.signal.aborted) stop();
  const { signal } = inner;
  // Asked for at once, so that the other side can end it at any time.
  const finish = way.wire.request({ do: "finish" }, { signal }).then(decodeFileFinished);
  const pump = pumpFile({ ...way, chunk, signal }, offset);
  try {
    await Promise.race([finish, pump]);
    return await finish;
  } finally {
    way.signal.removeEventListener("abort", stop);
    inner.abort();
    finish.catch(() => {}); // told already, or of no interest any more
    await pump.catch(() => {});
  }
}

/**
 * Sends everything from there, reading one block ahead.
 * @param {FileWay} way
 * @param {number} offset
 */
async function pumpFile({ wire, source, meter, chunk, signal }, offset) {
  const breath = new FileBreath();
  const block = Math.ceil(FILE_BLOCK / chunk) * chunk;
  let reading = source.read(offset, block);
  while (offset < source.size) {
    const data = await abortable(reading, signal);
    const next = offset + data.length;
    reading = source.read(next, block);
    reading.catch(() => {}); // told when its turn comes
    for (let at = 0; at < data.length; at += chunk) {
      const piece = data.subarray(at, at + chunk);
      await wire.send(piece, { signal });
      offset += piece.length;
      meter.at(offset);
      await breath.pause();
      signal.throwIfAborted();
    }
  }
}

// --- inbox.js ------------------------------------------------------------------------------------

// What has arrived and the application has yet to take, the last link of the credit; and what happens,
// for those who want to know. The same as meshpeer's inbox.py and announcer.py.

/**
 * A message on its way to the application; `readers` is how many have yet to take it.
 * @typedef {{peer: Peer, received: Received, path: Path, at: Date, readers: number}} Arrived
 */

/** @typedef {ItemStream<Arrived, Message>} MessageStream */

/**
 * Who reads: a stream, held weakly, or the listeners to "message" events, which take all.
 * @typedef {{put: (arrived: Arrived) => void, isEnded: boolean}} Taker
 * @typedef {{taker: () => Taker | undefined, channel: string | null}} Reader
 */

/**
 * Hands messages to their readers, and tells what all of them have taken.
 *
 * What nobody has taken counts against its sender's credit, so no peer that is there can make this
 * grow. Of those that have left at most `limit` bytes are kept in all.
 */
class Inbox {
  #limit;
  #made;
  #givenBack;
  /** @type {Set<Reader>} */
  #readers = new Set();
  /** What came before anybody asked for it. @type {Deque<Arrived>} */
  #unclaimed = new Deque();
  /** Bytes from each. @type {Map<Peer, number>} */
  #unread = new Map();
  /** Bytes from those that have left. */
  #ofLeft = 0;
  /** Streams that nobody has any more: who stops reading without a word must not hold senders back. */
  #abandoned = new FinalizationRegistry((/** @type {{reader: Reader, waiting: Deque<Arrived>}} */ held) => {
    this.#readers.delete(held.reader);
    while (held.waiting.size) this.#release(held.waiting.shift());
  });

  /**
   * @param {number} limit
   * @param {(arrived: Arrived, data: any) => Message} made makes what readers get
   * @param {(peer: Peer, received: Received) => void} givenBack all have taken it
   */
  constructor(limit, made, givenBack) {
    this.#limit = limit;
    this.#made = made;
    this.#givenBack = givenBack;
  }

  /**
   * A stream of what nobody has asked for yet, then of everything from now on.
   * @param {string | null} channel
   * @returns {MessageStream}
   */
  reader(channel) {
    /** @type {MessageStream} */
    const stream = new ItemStream((arrived) => this.taken(arrived));
    const held = new WeakRef(stream);
    const reader = { taker: () => held.deref(), channel };
    this.#readers.add(reader);
    this.#abandoned.register(stream, { reader, waiting: stream.waiting });
    this.#hand(reader, stream);
    return stream;
  }

  /**
   * Have everything handed to `taker` from now on, and what nobody has asked for. Returns what ends
   * that: it is given what was not taken.
   * @param {Taker} taker
   * @returns {(untaken: Iterable<Arrived>) => void}
   */
  listen(taker) {
    const reader = { taker: () => taker, channel: null };
    this.#readers.add(reader);
    this.#hand(reader, taker);
    return (untaken) => {
      this.#readers.delete(reader);
      for (const arrived of untaken) if (--arrived.readers <= 0) this.#unclaimed.push(arrived);
    };
  }

  /**
   * @param {Reader} reader
   * @param {Taker} taker
   */
  #hand({ channel }, taker) {
    const unclaimed = this.#unclaimed;
    this.#unclaimed = new Deque();
    for (const arrived of unclaimed) {
      if (channel === null || channel === arrived.received.channel) {
        arrived.readers = 1;
        taker.put(arrived);
      } else {
        this.#unclaimed.push(arrived);
      }
    }
  }

  /**
   * Hand messages of one peer to everybody who reads their channels.
   * @param {Peer} peer
   * @param {Path} path
   * @param {readonly Received[]} messages
   */
  deliver(peer, path, messages) {
    if (!messages.length) return;
    const at = new Date();
    let charges = this.#unread.get(peer) ?? 0;
    /** @type {string | null} */
    let channel = null;
    /** @type {Taker[]} */
    let takers = [];
    for (const received of messages) {
      if (received.channel !== channel) {
        channel = received.channel;
        takers = this.#takersOf(channel);
      }
      charges += received.charge;
      const arrived = { peer, received, path, at, readers: takers.length };
      for (const taker of takers) taker.put(arrived);
      if (!takers.length) this.#unclaimed.push(arrived);
    }
    this.#unread.set(peer, charges);
  }

  /** @param {string} name */
  #takersOf(name) {
    /** @type {Taker[]} */
    const takers = [];
    for (const reader of this.#readers) {
      if (reader.channel !== null && reader.channel !== name) continue;
      const taker = reader.taker();
      if (taker === undefined) continue;
      if (taker.isEnded) this.#readers.delete(reader);
      else takers.push(taker);
    }
    return takers;
  }

  /**
   * Nothing more comes from this peer; what did can still be read, within the limit.
   * @param {Peer} peer
   */
  peerLeft(peer) {
    this.#ofLeft += this.#unread.get(peer) ?? 0;
    if (this.#ofLeft <= this.#limit) return;
    const unclaimed = this.#unclaimed;
    this.#unclaimed = new Deque();
    for (const arrived of unclaimed) {
      if (this.#ofLeft > this.#limit && arrived.peer.closedReason !== null) this.#settle(arrived);
      else this.#unclaimed.push(arrived);
    }
    if (this.#ofLeft <= this.#limit) return;
    const error = new SlowReader(
      `more than ${this.#limit} bytes from peers that have left were not read (config.receiveWindow); read faster`,
    );
    for (const stream of this.#streams()) if (stream.size) stream.end(error);
  }

  /**
   * The manager is closed: every reader ends after what waits.
   * @param {Error | null} error
   */
  end(error) {
    for (const stream of this.#streams()) stream.end(error);
  }

  #streams() {
    return [...this.#readers].map((reader) => reader.taker()).filter((taker) => taker instanceof ItemStream);
  }

  /**
   * One of its readers takes it.
   * @param {Arrived} arrived
   */
  taken(arrived) {
    const { received } = arrived;
    // Decoded for each reader, so that none shares its objects with another.
    let data = received.value();
    if (data === received.payload && arrived.readers > 1) data = received.payload.slice();
    const message = this.#made(arrived, data);
    this.#release(arrived);
    return message;
  }

  /** @param {Arrived} arrived */
  #release(arrived) {
    if (--arrived.readers <= 0) this.#settle(arrived);
  }

  /** @param {Arrived} arrived */
  #settle({ peer, received }) {
    const left = (this.#unread.get(peer) ?? 0) - received.charge;
    if (left) this.#unread.set(peer, left);
    else this.#unread.delete(peer);
    if (peer.closedReason !== null) this.#ofLeft -= received.charge;
    // Of one that has left as well: the same process may have come back, and go on.
    this.#givenBack(peer, received);
  }
}

/** @param {string} kind */
const eventType = (kind) => kind.replace(/(?<!^)[A-Z]/g, "-$&").toLowerCase();

/** Tells events, and messages, to listeners and to those who iterate: at most `limit` events each. */
class Announcer {
  #limit;
  #target;
  /** @type {Set<WeakRef<ItemStream<any>>>} */
  #watchers = new Set();
  /** What listeners are told, in order. @type {Deque<() => void>} */
  #queue = new Deque();
  #isTelling = false;
  #isEnded = false;

  /**
   * @param {number} limit
   * @param {EventTarget} target
   */
  constructor(limit, target) {
    this.#limit = limit;
    this.#target = target;
  }

  /**
   * Tell everybody, in the order of the calls.
   * @param {{kind: string}} event
   */
  tell(event) {
    for (const held of this.#watchers) {
      const stream = held.deref();
      if (stream === undefined || stream.isEnded) this.#watchers.delete(held);
      else this.#offer(stream, event);
    }
    this.later(() => this.#target.dispatchEvent(new CustomEvent(eventType(event.kind), { detail: event })));
  }

  /**
   * Call this in its turn among what listeners are told: when all that is being done now is done, so
   * that a listener may do whatever it likes.
   * @param {() => void} call
   */
  later(call) {
    this.#queue.push(call);
    if (this.#isTelling) return;
    this.#isTelling = true;
    queueMicrotask(() => {
      while (this.#queue.size) {
        try {
          this.#queue.shift()(); // what a listener throws, dispatchEvent reports
        } catch (error) {
          report(error);
        }
      }
      this.#isTelling = false;
    });
  }

  /** There are no more events; what was told is still heard. */
  end() {
    this.#isEnded = true;
    for (const held of this.#watchers) held.deref()?.end();
    this.#watchers.clear();
  }

  /**
   * A stream of every event from now on.
   * @returns {ItemStream<any>}
   */
  events() {
    const stream = new ItemStream((event) => event);
    if (this.#isEnded) stream.end();
    else this.#watchers.add(new WeakRef(stream));
    return stream;
  }

  /**
   * @param {ItemStream<any>} stream
   * @param {{kind: string}} event
   */
  #offer(stream, event) {
    if (stream.size < this.#limit) {
      stream.put(event);
      return;
    }
    stream.end(
      new SlowReader(
        `${this.#limit} events were not read (config.maxPendingEvents); read faster, or listen to those that you need`,
      ),
    );
  }
}

// --- peer.js -------------------------------------------------------------------------------------

// The public faces of the others in the room: `Peer`, `Message` and `Channel`. The same as meshpeer's
// peer.py.

/** Bytes of the largest message on a plain channel: what every endpoint takes (RFC 8841). */
const MAX_PLAIN = 65_536;

/**
 * A plain data channel, as the connection gives it.
 * @typedef {object} RawChannel
 * @property {string} label
 * @property {string} state
 * @property {number} bufferedAmount
 * @property {boolean} lossy  whether it may lose messages
 * @property {(data: string | Uint8Array) => void} send
 * @property {() => void} close
 * @property {(handlers: {onOpen: () => void, onMessage: (data: string | Uint8Array) => void,
 *   onLow: () => void, onClose: () => void, low: number}) => void} listen
 */

/**
 * What a plain channel is opened with. `maxPacketLifeTime` is in milliseconds.
 * @typedef {{ordered: boolean, maxRetransmits: number | null, maxPacketLifeTime: number | null}} ChannelOptions
 */

/**
 * A round trip to a peer, or why there was none. `rtt` is in seconds.
 * @typedef {{kind: "PathTest", peerId: string, path: Path | null, rtt: number | null, error: string | null}} PathTest
 */

/**
 * What a `Peer` needs of its manager.
 * @typedef {object} PeerHost
 * @property {number} maxMessageSize
 * @property {() => void} checkRunning  throws `MeshClosed` when it is closed, or is to be
 * @property {(peer: Peer) => PeerState} stateOf
 * @property {(peer: Peer) => string} iceStateOf
 * @property {(peer: Peer) => Path | null} pathOf
 * @property {(peer: Peer) => number | null} rttOf
 * @property {(peer: Peer, message: Outgoing, signal: AbortSignal | null) => Promise<void>} send
 * @property {(peer: Peer, data: unknown, options: {channel: string, timeout: number | null,
 *   signal: AbortSignal | null}) => Promise<any>} request
 * @property {(peer: Peer, options: {timeout: number | null, signal: AbortSignal | null}) => Promise<void>} flush
 * @property {(peer: Peer, blob: Blob, options: FileOptions) => Promise<FileSent>} sendFile
 * @property {(peer: Peer, label: string, options: ChannelOptions) => Channel} openChannel
 */

/**
 * @typedef {object} FileOptions
 * @property {string | null} [name]  what it is offered as; by default the name of the File
 * @property {((progress: FileProgress) => unknown) | null} [onProgress]  called at the beginning, at
 *   the end, and at most ten times a second
 * @property {AbortSignal | null} [signal]
 */

/** Messages that wait until their channel has room, in the order in which they came. */
class SendLine {
  /** @type {Set<() => void>} */
  #waiting = new Set();
  #isBusy = false;

  /** Whether nobody has his turn, or waits for it. */
  get isFree() {
    return !this.#isBusy;
  }

  /**
   * Wait for the turn, which is to be given back with `leave`. Throws the reason of `signal`; then
   * there is nothing to give back.
   * @param {AbortSignal | null} signal
   * @returns {Promise<void>}
   */
  enter(signal) {
    signal?.throwIfAborted();
    if (!this.#isBusy) {
      this.#isBusy = true;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const turn = () => {
        signal?.removeEventListener("abort", abort);
        resolve();
      };
      const abort = () => {
        this.#waiting.delete(turn);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#waiting.add(turn);
    });
  }

  leave() {
    for (const turn of this.#waiting) {
      this.#waiting.delete(turn);
      turn();
      return;
    }
    this.#isBusy = false;
  }
}

/** What the manager keeps of a peer, out of the public interface. */
class PeerRecord {
  /** @type {string | null} */
  closedReason = null;
  /** Rings when the state, the credit or the buffer has changed. */
  bell = new Bell();
  /** Who waits to send, on each channel where somebody does. @type {Map<string, SendLine>} */
  lines = new Map();
  /** What was accepted since others had their turn, in bytes. */
  burst = 0;
  /** The requests that wait for their answers.
      @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void}>} */
  requests = new Map();
  /** @type {UndeliveredMessage[]} */
  undelivered = [];
  /** When the latest `BadInput` about its files and channels was told. */
  complained = -Infinity;
  /** @type {Set<Channel>} */
  channels = new Set();
  /** Ping frames, and the number of the latest that was answered. */
  pingsSent = 0;
  pingsAnswered = 0;

  /**
   * @param {string | null} name
   * @param {Metadata} metadata
   * @param {ChannelBudget} budget
   */
  constructor(name, metadata, budget) {
    this.name = name;
    this.metadata = metadata;
    this.budget = budget;
  }
}

/**
 * `data` ready to be sent. Throws `InvalidData`, `MessageTooLarge`.
 * @param {unknown} data
 * @param {string} channel
 * @param {number} limit
 * @param {RoleValue} [role]
 * @param {number} [number]
 * @returns {Outgoing}
 */
function encodedMessage(data, channel, limit, role = Role.PLAIN, number = 0) {
  const [kind, payload] = encodeValue(data);
  if (payload.length > limit) {
    throw new MessageTooLarge(
      `the message has ${payload.length} bytes, the limit is ${limit} (config.maxMessageSize): send it in parts`,
    );
  }
  return { kind: "Outgoing", channel, size: payload.length, parts: encodeMessage(kind, payload, role, number) };
}

const HALF_CHARACTER = /\p{Surrogate}/u;

/**
 * Throws `ConfigError` unless it can name a channel.
 * @param {string} what
 * @param {unknown} label
 */
function checkLabel(what, label) {
  if (typeof label !== "string") throw new ConfigError(`${what} must be a text, not ${typeof label}`);
  if (HALF_CHARACTER.test(label)) throw new ConfigError(`${what} must be valid Unicode`);
  const size = utf8Length(label);
  if (size < 1 || size > MAX_CHANNEL) {
    throw new ConfigError(`${what} must be a name of 1 to ${MAX_CHANNEL} bytes of UTF-8, not ${repr(label)}`);
  }
  if (label.startsWith(RESERVED)) {
    throw new ConfigError(`${what} ${repr(label)}: names that begin with ${repr(RESERVED)} are reserved`);
  }
}

/** Something a peer sent. */
class Message {
  #host;
  #request;

  /**
   * @param {PeerHost} host
   * @param {object} facts
   * @param {Peer} facts.sender
   * @param {any} facts.data
   * @param {string} facts.channel
   * @param {Path} facts.path
   * @param {Date} facts.receivedAt
   * @param {number} facts.request
   */
  constructor(host, { sender, data, channel, path, receivedAt, request }) {
    this.kind = "Message";
    /** Who sent it. */
    this.sender = sender;
    /** What was given to `Peer.send`: text, a Uint8Array, or what JSON makes of the rest. */
    this.data = data;
    this.channel = channel;
    /** How it came. */
    this.path = path;
    /** When it arrived here. */
    this.receivedAt = receivedAt;
    this.#host = host;
    this.#request = request;
  }

  /** Whether it was sent by `Peer.request`, and `reply` answers it. */
  get wantsReply() {
    return this.#request > 0;
  }

  /**
   * Answer a request; returns when the answer is accepted, as `Peer.send` does.
   *
   * The first answer counts; one that comes too late is dropped over there. Throws `UsageError` when
   * nobody asked, and what `Peer.send` throws.
   * @param {unknown} data
   */
  async reply(data) {
    await this.#answer(data, Role.REPLY);
  }

  /**
   * Answer a request with an error: over there `Peer.request` throws `RequestFailed` with this text.
   * Throws like `reply`, and `InvalidData` for anything but a string.
   * @param {string} text
   */
  async replyError(text) {
    if (typeof text !== "string") throw new InvalidData(`an error is text, not ${typeName(text)}`);
    await this.#answer(text, Role.ERROR);
  }

  /**
   * @param {unknown} data
   * @param {RoleValue} role
   */
  async #answer(data, role) {
    if (!this.wantsReply) {
      throw new UsageError("nobody waits for an answer to this message: it was sent by Peer.send");
    }
    const message = encodedMessage(data, this.channel, this.#host.maxMessageSize, role, this.#request);
    await this.#host.send(this.sender, message, null);
  }
}

/**
 * Somebody in the room, as one incarnation: a page that is loaded anew comes as another `Peer`.
 *
 * Where a method takes an AbortSignal, aborting it makes the call throw the signal's reason; what else
 * that leaves behind, the method says.
 */
class Peer {
  #host;
  #id;
  #incarnation;
  #record;

  /**
   * @param {PeerHost} host
   * @param {string} id
   * @param {string} incarnation
   * @param {PeerRecord} record
   */
  constructor(host, id, incarnation, record) {
    this.#host = host;
    this.#id = id;
    this.#incarnation = incarnation;
    this.#record = record;
  }

  /** The name the peer is addressed by, unique in the room. */
  get id() {
    return this.#id;
  }

  /** Random, and another one for every process or page that holds the id. */
  get incarnation() {
    return this.#incarnation;
  }

  /** What people read; not unique. */
  get name() {
    return this.#record.name;
  }

  /** What the peer's application tells of itself. */
  get metadata() {
    return this.#record.metadata;
  }

  /**
   * `new → connecting → connected ⇄ disconnected → failed`, and `closed`.
   * @returns {PeerState}
   */
  get state() {
    return this.#record.closedReason === null ? this.#host.stateOf(this) : "closed";
  }

  /**
   * `new → gathering → checking → connected ⇄ disconnected → failed`, and `closed`: the current
   * connection's, in W3C WebRTC's words. An ICE restart does not begin it anew.
   */
  get iceState() {
    return this.#record.closedReason === null ? this.#host.iceStateOf(this) : "closed";
  }

  /** How data flows now: "direct", "turn" or "relay"; null while it does not. */
  get path() {
    return this.#record.closedReason === null ? this.#host.pathOf(this) : null;
  }

  /** Why the peer is gone; null while it is there. */
  get closedReason() {
    return this.#record.closedReason;
  }

  /** The latest round trip in seconds; null before the first. */
  get rtt() {
    return this.#record.closedReason === null ? this.#host.rttOf(this) : null;
  }

  /**
   * Send text, bytes (Uint8Array, ArrayBuffer) or JSON-able data; resolves when it is accepted.
   *
   * What is accepted reaches the other application exactly once, and in the order in which it was
   * accepted on its channel, whatever happens to the path, as long as both live. Otherwise
   * `messages-undelivered` tells. Waits only while the channel has `config.sendWindow` bytes that were
   * not acknowledged; there need be no path yet.
   *
   * Throws `InvalidData`, `MessageTooLarge` (over `config.maxMessageSize` or over the other side's
   * limit), `ConfigError` for a name that no channel can have, `TooManyChannels` for one more than the
   * other side takes, `PeerClosed` when the peer is gone (`Undelivered` when it went meanwhile),
   * `MeshClosed`. When it is aborted, the message was not accepted.
   * @param {unknown} data
   * @param {string} [channel]
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async send(data, channel = "default", { signal = null } = {}) {
    if (channel !== "default") checkLabel("channel", channel);
    await this.#host.send(this, encodedMessage(data, channel, this.#host.maxMessageSize), signal);
  }

  /**
   * Wait until everything accepted so far has arrived over there, and is acknowledged.
   *
   * It has arrived when that process has it, read or not; but an application that does not read takes
   * no more than its windows. `timeout` is in seconds, null for no limit. Throws `MeshTimeout`,
   * `Undelivered` when the peer is gone and not all had arrived, `MeshClosed`. Aborting it changes
   * nothing of what was sent.
   * @param {number | null} [timeout]
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async flush(timeout = null, { signal = null } = {}) {
    await this.#host.flush(this, { timeout, signal });
  }

  /**
   * Send a message that wants an answer, and return the answer's data.
   *
   * Over there it is a `Message` like any other, and its `reply` answers it. `timeout` is in seconds,
   * null for no limit. Throws `RequestFailed` with the other side's text when it answered with an
   * error, `MeshTimeout`, `PeerClosed` when the peer is gone, and what `send` throws. When it is
   * aborted, the request may arrive; its answer is dropped.
   * @param {unknown} data
   * @param {{timeout?: number | null, channel?: string, signal?: AbortSignal | null}} [options]
   * @returns {Promise<any>}
   */
  async request(data, { timeout = 30, channel = "default", signal = null } = {}) {
    checkLabel("channel", channel);
    return this.#host.request(this, data, { channel, timeout, signal });
  }

  /**
   * Send a File or a Blob; resolves when the other side has stored it and found its SHA-256 right.
   *
   * Over there `receiveFile` takes it, and is waited for. A transfer that broke goes on where it was
   * when the same file is sent again, where the other side keeps what it has. Files to one peer go one
   * after another.
   *
   * Throws `TransferFailed` when the other side refuses it or can't store it, `PeerClosed` when the
   * peer is gone, `ConfigError` for a name that can't be, `MeshClosed`. When it is aborted, the other
   * side is told and keeps what it has.
   * @param {Blob} blob
   * @param {FileOptions} [options]
   */
  async sendFile(blob, options = {}) {
    return this.#host.sendFile(this, blob, options);
  }

  /**
   * Open a plain data channel on the current connection (W3C WebRTC, createDataChannel).
   *
   * Resolves when it is open; the other side is told `channel-opened`. Unlike messages, a plain
   * channel ends with its connection, and nothing holds the sender back but its buffer.
   * `maxRetransmits` (a number) or `maxPacketLifeTime` (milliseconds), not both, make it partially
   * reliable (RFC 8831, section 6.4).
   *
   * Throws `PeerClosed` when the peer is gone, `ChannelClosed` when the connection ends first,
   * `ConfigError` for wrong options, `MeshClosed`. Waits for a direct path, or one over TURN; the
   * relay carries none of it. When it is aborted, the channel is closed.
   * @param {string} label
   * @param {Partial<ChannelOptions> & {signal?: AbortSignal | null}} [options]
   */
  async openChannel(label, { ordered = true, maxRetransmits = null, maxPacketLifeTime = null, signal = null } = {}) {
    checkLabel("label", label);
    if (maxRetransmits !== null && maxPacketLifeTime !== null) {
      throw new ConfigError(
        "a channel has maxRetransmits or maxPacketLifeTime, not both " +
          `(given ${maxRetransmits} and ${maxPacketLifeTime})`,
      );
    }
    for (const [name, value] of Object.entries({ maxRetransmits, maxPacketLifeTime })) {
      if (value !== null && !(Number.isInteger(value) && value >= 0 && value <= 65535)) {
        throw new ConfigError(`${name} must be a whole number between 0 and 65535, not ${String(value)}`);
      }
    }
    signal?.throwIfAborted();
    while (this.path === null || this.path === "relay") {
      this.#host.checkRunning();
      if (this.state === "closed") {
        const reason = this.#record.closedReason ?? "closed";
        throw new PeerClosed(`peer ${repr(this.#id)} is gone (${reason})`, { reason });
      }
      await this.#record.bell.wait(signal);
    }
    const channel = this.#host.openChannel(this, label, { ordered, maxRetransmits, maxPacketLifeTime });
    try {
      await channel.waitOpen({ signal });
    } catch (error) {
      channel.close();
      throw error;
    }
    return channel;
  }
}

/**
 * What the plain channels of one peer may keep unread, together. That of a channel which nobody has any
 * more is given back.
 */
class ChannelBudget {
  used = 0;

  /** @param {number} limit */
  constructor(limit) {
    this.limit = limit;
  }

  /** Whether there is more than there may be. */
  get isExhausted() {
    return this.used > this.limit;
  }
}

/** What one channel keeps of its peer's budget. */
class ChannelShare {
  #used = 0;

  /** @param {ChannelBudget} budget */
  constructor(budget) {
    this.budget = budget;
  }

  /** @param {number} cost */
  add(cost) {
    this.#used += cost;
    this.budget.used += cost;
  }

  giveBack() {
    this.add(-this.#used);
  }
}

/** @type {FinalizationRegistry<ChannelShare>} */
const channelsForgotten = new FinalizationRegistry((share) => share.giveBack());

/** @param {string | Uint8Array} data */
const plainSize = (data) => (typeof data === "string" ? utf8Length(data) : data.byteLength);

/**
 * A plain data channel (RFC 8831). Iterate over it to read; text or bytes, as they were sent.
 *
 * What is not read is kept, up to `config.receiveWindow` bytes of all channels with the peer. Beyond it
 * a channel that may lose messages loses its oldest, and any other one that gets more is closed: WebRTC
 * gives a receiver no way to hold the sender back.
 */
class Channel {
  #raw;
  #peer;
  #share;
  #sendBuffer;
  #closed;
  #bell = new Bell();
  #line = new SendLine();
  /** @type {ItemStream<string | Uint8Array>} */
  #stream;
  /** @type {string | null} */
  #closedBecause = null;

  /**
   * @param {RawChannel} raw
   * @param {Peer} peer
   * @param {object} options
   * @param {ChannelBudget} options.budget
   * @param {number} options.sendBuffer
   * @param {(channel: Channel) => void} options.closed
   */
  constructor(raw, peer, { budget, sendBuffer, closed }) {
    this.#raw = raw;
    this.#peer = peer;
    this.#share = new ChannelShare(budget);
    channelsForgotten.register(this, this.#share);
    this.#sendBuffer = sendBuffer;
    this.#closed = closed;
    this.#stream = new ItemStream((data) => {
      // By this the stream holds the channel: whoever still reads has not forgotten it.
      this.#share.add(-OVERHEAD - plainSize(data));
      return data;
    });
    raw.listen({
      onOpen: () => this.#bell.ring(),
      onMessage: (data) => this.#received(data),
      onLow: () => this.#bell.ring(),
      onClose: () => this.#end("closed by the other side, or with its connection"),
      low: sendBuffer >> 1,
    });
  }

  /** The name given by the side that opened it; not unique. */
  get label() {
    return this.#raw.label;
  }

  /** The peer at the other end. */
  get peer() {
    return this.#peer;
  }

  /** `connecting → open → closing → closed`. */
  get state() {
    return this.#closedBecause === null ? this.#raw.state : "closed";
  }

  /**
   * Send one message; waits while more than `config.sendBuffer` bytes wait to go out.
   *
   * Throws `ChannelClosed`, `InvalidData` for anything but text and bytes, `MessageTooLarge` over 65536
   * bytes. When it is aborted, nothing was sent.
   * @param {string | Uint8Array | ArrayBuffer} data
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async send(data, { signal = null } = {}) {
    const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : data;
    if (typeof bytes !== "string" && !(bytes instanceof Uint8Array)) {
      throw new InvalidData(`a plain channel sends text or bytes, not ${typeof data}`);
    }
    const size = plainSize(bytes);
    if (size > MAX_PLAIN) {
      throw new MessageTooLarge(
        `the message has ${size} bytes, a plain channel takes ${MAX_PLAIN}: use Peer.send, or send it in parts`,
      );
    }
    await this.#line.enter(signal);
    try {
      await this.waitOpen({ signal });
      while (this.#raw.bufferedAmount > this.#sendBuffer) {
        await this.#bell.wait(signal);
        this.#checkOpen();
      }
      this.#raw.send(bytes);
    } finally {
      this.#line.leave();
    }
  }

  /**
   * Wait until it is open. Throws `ChannelClosed` when it closes first.
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async waitOpen({ signal = null } = {}) {
    for (;;) {
      this.#checkOpen();
      if (this.#raw.state === "open") return;
      await this.#bell.wait(signal);
    }
  }

  /** Close it on both sides. What was received can still be read. */
  close() {
    this.#end("closed here");
  }

  /**
   * What has arrived, each message once, however many loops there are: a `break` ends the loop, not the
   * channel, and the next loop goes on.
   * @returns {AsyncIterableIterator<string | Uint8Array, undefined>}
   */
  [Symbol.asyncIterator]() {
    const stream = this.#stream;
    return {
      next: () => stream.next(),
      return: async () => ({ done: true, value: undefined }),
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /**
   * The peer is gone, and its channels with it. Called by the manager.
   * @param {string} reason
   */
  abandon(reason) {
    this.#end(reason);
  }

  #checkOpen() {
    if (this.#closedBecause !== null) {
      const reason = this.#closedBecause;
      throw new ChannelClosed(`channel ${repr(this.label)} to ${repr(this.#peer.id)} is closed (${reason})`, { reason });
    }
  }

  /** @param {string | Uint8Array} data */
  #received(data) {
    if (this.#closedBecause !== null) return;
    const { budget } = this.#share;
    const stream = this.#stream;
    this.#share.add(OVERHEAD + plainSize(data));
    stream.put(data);
    while (budget.isExhausted && this.#raw.lossy && stream.size) stream.take();
    if (budget.isExhausted) this.#end(`more than ${budget.limit} bytes from this peer were not read`);
  }

  /** @param {string} reason */
  #end(reason) {
    if (this.#closedBecause !== null) return;
    this.#closedBecause = reason;
    this.#closed(this);
    this.#raw.close();
    this.#stream.end();
    this.#bell.ring();
  }
}

// --- link.js -------------------------------------------------------------------------------------

// One local peer and one remote incarnation: how their connection comes about, and comes back.
//
// A Link is fed inputs and returns outputs. What it does with an input is one row of LINK_TABLE,
// found by (state, input, condition); there is no other place where the state changes. An input
// that the table does not list raises UnexpectedInput when it is the shell's doing, and is refused
// with a ProtocolError when it came from the other side; either way nothing changes.
//
// The peer with the smaller id dials, the other waits (and may ask to be dialled). Each attempt has
// a number, its epoch; every signal carries it, and so does everything the shell reports about a
// connection. What belongs to an earlier epoch has rows of its own and changes nothing.
//
// A connection lives through ICE restarts, which have a table of their own: the link says when one
// begins, hands on what is about one (a generation above 0), and when none of them helps makes a
// new connection.

// --- what a link asks the shell to do: the outputs that the link and its ICE restarts share ------

/**
 * Make an offer and report it. Generation 0 makes the connection first.
 * @typedef {{kind: "MakeOffer", generation: number}} MakeOffer
 */
/**
 * Make an answer to this offer and report it. Generation 0 makes the connection first.
 * @typedef {{kind: "AcceptOffer", sdp: string, generation: number}} AcceptOffer
 */
/**
 * Give the answer to the connection.
 * @typedef {{kind: "AcceptAnswer", sdp: string, generation: number}} AcceptAnswer
 */
/**
 * Give remote candidates to the connection.
 * @typedef {{kind: "AddCandidates", candidates: IceCandidate[], end: boolean, generation: number}} AddCandidates
 */
/**
 * Close the connection; later operations wait until it is closed.
 * @typedef {{kind: "CloseConnection"}} CloseConnection
 */
/** @typedef {MakeOffer | AcceptOffer | AcceptAnswer | AddCandidates | CloseConnection} Operation */
/**
 * Run an operation on the connection of this epoch, after those that came before it.
 * @typedef {{kind: "Operate", epoch: number, operation: Operation}} Operate
 */
/**
 * Send this to the remote incarnation.
 * @typedef {{kind: "SendSignal", epoch: number, body: LinkMessage}} SendSignal
 */
/**
 * What the other side sent was refused.
 * @typedef {{kind: "Refuse", error: ProtocolError}} Refuse
 */

// --- the table -----------------------------------------------------------------------------------

/**
 * Where a link stands. `Link.peerState` says it in the words of the public interface.
 * - waiting: the other side is to dial
 * - offering: an offer is being made
 * - offered: the offer is sent, the answer has not come
 * - answering: an answer is being made
 * - checking: both descriptions are exchanged; ICE, DTLS and SCTP are at work
 * - disconnected: nothing was heard for a while; the connection may still come back
 * - failed: attempts failed; another follows after a wait
 * @typedef {"new" | "waiting" | "offering" | "offered" | "answering" | "checking" | "connected"
 *   | "disconnected" | "failed" | "closed"} LinkState
 */

/**
 * What can happen to a link. From the other side, with a generation above 0: an offer is a
 * "restart offer", an answer or candidates are a "restart reply"; a "restart report" is what became
 * of an operation of such a generation. "restart": something asks for an ICE restart.
 * @typedef {"start"
 *   | "offer" | "answer" | "candidates" | "dial" | "stale" | "restart offer" | "restart reply"
 *   | "offer made" | "answer made" | "operation failed" | "opened" | "lost" | "path lost" | "heard"
 *   | "candidates found" | "selected" | "restart report"
 *   | "deadline" | "silence"
 *   | "reachable" | "restart" | "close"} LinkInput
 */

/**
 * In `state`, on `input` under `condition`: run `actions`, be in `next`. `reason` says why; it is
 * shown to users when the state changes. `{}` takes the detail of the input.
 * @typedef {[state: LinkState, input: LinkInput, condition: string, next: LinkState,
 *   actions: string[], reason: string]} LinkRow
 */

/** @type {readonly LinkRow[]} */
const LINK_TABLE = [
  // <generated: link-table>
  ["new", "start", "dials", "offering", ["dial"], "dialling"],
  ["new", "start", "waits", "waiting", [], "waiting to be dialled"],
  ["waiting", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["answering", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["checking", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["connected", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["disconnected", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["failed", "offer", "waits, newer", "answering", ["answer"], "dialled"],
  ["waiting", "offer", "waits, current", "waiting", [], "the same offer again"],
  ["answering", "offer", "waits, current", "answering", [], "the same offer again"],
  ["checking", "offer", "waits, current", "checking", [], "the same offer again"],
  ["connected", "offer", "waits, current", "connected", [], "the same offer again"],
  ["disconnected", "offer", "waits, current", "disconnected", [], "the same offer again"],
  ["failed", "offer", "waits, current", "failed", [], "the same offer again"],
  ["waiting", "offer", "waits, older", "waiting", ["replyStale"], "an epoch that is over"],
  ["answering", "offer", "waits, older", "answering", ["replyStale"], "an epoch that is over"],
  ["checking", "offer", "waits, older", "checking", ["replyStale"], "an epoch that is over"],
  ["connected", "offer", "waits, older", "connected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "offer", "waits, older", "disconnected", ["replyStale"], "an epoch that is over"],
  ["failed", "offer", "waits, older", "failed", ["replyStale"], "an epoch that is over"],
  ["offering", "offer", "dials, older", "offering", [], "both dial: the offer of the smaller id wins"],
  ["offering", "offer", "dials, current", "offering", [], "both dial: the offer of the smaller id wins"],
  ["offering", "offer", "dials, newer", "offering", [], "both dial: the offer of the smaller id wins"],
  ["offered", "offer", "dials, older", "offered", [], "both dial: the offer of the smaller id wins"],
  ["offered", "offer", "dials, current", "offered", [], "both dial: the offer of the smaller id wins"],
  ["offered", "offer", "dials, newer", "offered", [], "both dial: the offer of the smaller id wins"],
  ["checking", "offer", "dials, older", "checking", [], "both dial: the offer of the smaller id wins"],
  ["checking", "offer", "dials, current", "checking", [], "both dial: the offer of the smaller id wins"],
  ["checking", "offer", "dials, newer", "checking", [], "both dial: the offer of the smaller id wins"],
  ["connected", "offer", "dials, newer", "offering", ["dial"], "both dial: the smaller id dials again"],
  ["disconnected", "offer", "dials, newer", "offering", ["dial"], "both dial: the smaller id dials again"],
  ["failed", "offer", "dials, newer", "offering", ["dial"], "both dial: the smaller id dials again"],
  ["connected", "offer", "dials, older", "connected", ["replyStale"], "an epoch that is over"],
  ["connected", "offer", "dials, current", "connected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "offer", "dials, older", "disconnected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "offer", "dials, current", "disconnected", ["replyStale"], "an epoch that is over"],
  ["failed", "offer", "dials, older", "failed", ["replyStale"], "an epoch that is over"],
  ["failed", "offer", "dials, current", "failed", ["replyStale"], "an epoch that is over"],
  ["offered", "answer", "dials, current", "checking", ["acceptAnswer"], "answered"],
  ["offering", "answer", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "answer", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "answer", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "answer", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "answer", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "answer", "dials, older", "failed", [], "an epoch that is over"],
  ["checking", "answer", "dials, current", "checking", [], "the same answer again"],
  ["connected", "answer", "dials, current", "connected", [], "the same answer again"],
  ["disconnected", "answer", "dials, current", "disconnected", [], "the same answer again"],
  ["failed", "answer", "dials, current", "failed", [], "an attempt that failed"],
  ["offered", "candidates", "dials, current", "offered", ["addCandidates"], "candidates"],
  ["checking", "candidates", "dials, current", "checking", ["addCandidates"], "candidates"],
  ["connected", "candidates", "dials, current", "connected", ["addCandidates"], "candidates"],
  ["disconnected", "candidates", "dials, current", "disconnected", ["addCandidates"], "candidates"],
  ["answering", "candidates", "waits, current", "answering", ["addCandidates"], "candidates"],
  ["checking", "candidates", "waits, current", "checking", ["addCandidates"], "candidates"],
  ["connected", "candidates", "waits, current", "connected", ["addCandidates"], "candidates"],
  ["disconnected", "candidates", "waits, current", "disconnected", ["addCandidates"], "candidates"],
  ["failed", "candidates", "dials, current", "failed", [], "an attempt that failed"],
  ["waiting", "candidates", "waits, current", "waiting", [], "an attempt that failed"],
  ["failed", "candidates", "waits, current", "failed", [], "an attempt that failed"],
  ["offering", "candidates", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "candidates", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "candidates", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "candidates", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "candidates", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "candidates", "dials, older", "failed", [], "an epoch that is over"],
  ["waiting", "candidates", "waits, older", "waiting", [], "an epoch that is over"],
  ["answering", "candidates", "waits, older", "answering", [], "an epoch that is over"],
  ["checking", "candidates", "waits, older", "checking", [], "an epoch that is over"],
  ["connected", "candidates", "waits, older", "connected", [], "an epoch that is over"],
  ["disconnected", "candidates", "waits, older", "disconnected", [], "an epoch that is over"],
  ["failed", "candidates", "waits, older", "failed", [], "an epoch that is over"],
  ["waiting", "candidates", "waits, newer", "waiting", ["holdCandidates"], "candidates before their offer"],
  ["answering", "candidates", "waits, newer", "answering", ["holdCandidates"], "candidates before their offer"],
  ["checking", "candidates", "waits, newer", "checking", ["holdCandidates"], "candidates before their offer"],
  ["connected", "candidates", "waits, newer", "connected", ["holdCandidates"], "candidates before their offer"],
  ["disconnected", "candidates", "waits, newer", "disconnected", ["holdCandidates"], "candidates before their offer"],
  ["failed", "candidates", "waits, newer", "failed", ["holdCandidates"], "candidates before their offer"],
  ["checking", "restart offer", "dials, current", "checking", ["handOn"], "an ICE restart"],
  ["checking", "restart offer", "waits, current", "checking", ["handOn"], "an ICE restart"],
  ["connected", "restart offer", "dials, current", "connected", ["handOn"], "an ICE restart"],
  ["connected", "restart offer", "waits, current", "connected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart offer", "dials, current", "disconnected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart offer", "waits, current", "disconnected", ["handOn"], "an ICE restart"],
  ["checking", "restart reply", "dials, current", "checking", ["handOn"], "an ICE restart"],
  ["checking", "restart reply", "waits, current", "checking", ["handOn"], "an ICE restart"],
  ["connected", "restart reply", "dials, current", "connected", ["handOn"], "an ICE restart"],
  ["connected", "restart reply", "waits, current", "connected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart reply", "dials, current", "disconnected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart reply", "waits, current", "disconnected", ["handOn"], "an ICE restart"],
  ["waiting", "restart offer", "waits, newer", "waiting", ["disown"], "nothing is known of this connection"],
  ["answering", "restart offer", "waits, newer", "answering", ["disown"], "nothing is known of this connection"],
  ["checking", "restart offer", "waits, newer", "checking", ["disown"], "nothing is known of this connection"],
  ["connected", "restart offer", "waits, newer", "connected", ["disown"], "nothing is known of this connection"],
  ["disconnected", "restart offer", "waits, newer", "disconnected", ["disown"], "nothing is known of this connection"],
  ["failed", "restart offer", "waits, newer", "failed", ["disown"], "nothing is known of this connection"],
  ["waiting", "restart offer", "waits, current", "waiting", ["disown"], "this connection is over"],
  ["failed", "restart offer", "waits, current", "failed", ["disown"], "this connection is over"],
  ["waiting", "restart offer", "waits, older", "waiting", ["replyStale"], "an epoch that is over"],
  ["answering", "restart offer", "waits, older", "answering", ["replyStale"], "an epoch that is over"],
  ["checking", "restart offer", "waits, older", "checking", ["replyStale"], "an epoch that is over"],
  ["connected", "restart offer", "waits, older", "connected", ["replyStale"], "an epoch that is over"],
  ["disconnected", "restart offer", "waits, older", "disconnected", ["replyStale"], "an epoch that is over"],
  ["failed", "restart offer", "waits, older", "failed", ["replyStale"], "an epoch that is over"],
  ["answering", "restart offer", "waits, current", "answering", [], "before the answer"],
  ["offered", "restart offer", "dials, current", "offered", [], "before the answer"],
  ["offering", "restart offer", "dials, newer", "offering", [], "dialling already"],
  ["offered", "restart offer", "dials, newer", "offered", [], "dialling already"],
  ["checking", "restart offer", "dials, newer", "checking", [], "dialling already"],
  ["connected", "restart offer", "dials, newer", "offering", ["dial"], "the other side is ahead"],
  ["disconnected", "restart offer", "dials, newer", "offering", ["dial"], "the other side is ahead"],
  ["failed", "restart offer", "dials, newer", "offering", ["dial"], "the other side is ahead"],
  ["offering", "restart offer", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "restart offer", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "restart offer", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "restart offer", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "restart offer", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "restart offer", "dials, older", "failed", [], "an epoch that is over"],
  ["failed", "restart offer", "dials, current", "failed", [], "an attempt that failed"],
  ["offering", "restart reply", "dials, older", "offering", [], "not of this connection"],
  ["offering", "restart reply", "dials, newer", "offering", [], "not of this connection"],
  ["offered", "restart reply", "dials, older", "offered", [], "not of this connection"],
  ["offered", "restart reply", "dials, newer", "offered", [], "not of this connection"],
  ["checking", "restart reply", "dials, older", "checking", [], "not of this connection"],
  ["checking", "restart reply", "dials, newer", "checking", [], "not of this connection"],
  ["connected", "restart reply", "dials, older", "connected", [], "not of this connection"],
  ["connected", "restart reply", "dials, newer", "connected", [], "not of this connection"],
  ["disconnected", "restart reply", "dials, older", "disconnected", [], "not of this connection"],
  ["disconnected", "restart reply", "dials, newer", "disconnected", [], "not of this connection"],
  ["failed", "restart reply", "dials, older", "failed", [], "not of this connection"],
  ["failed", "restart reply", "dials, newer", "failed", [], "not of this connection"],
  ["waiting", "restart reply", "waits, older", "waiting", [], "not of this connection"],
  ["waiting", "restart reply", "waits, newer", "waiting", [], "not of this connection"],
  ["answering", "restart reply", "waits, older", "answering", [], "not of this connection"],
  ["answering", "restart reply", "waits, newer", "answering", [], "not of this connection"],
  ["checking", "restart reply", "waits, older", "checking", [], "not of this connection"],
  ["checking", "restart reply", "waits, newer", "checking", [], "not of this connection"],
  ["connected", "restart reply", "waits, older", "connected", [], "not of this connection"],
  ["connected", "restart reply", "waits, newer", "connected", [], "not of this connection"],
  ["disconnected", "restart reply", "waits, older", "disconnected", [], "not of this connection"],
  ["disconnected", "restart reply", "waits, newer", "disconnected", [], "not of this connection"],
  ["failed", "restart reply", "waits, older", "failed", [], "not of this connection"],
  ["failed", "restart reply", "waits, newer", "failed", [], "not of this connection"],
  ["offered", "restart reply", "dials, current", "offered", [], "not of this connection"],
  ["failed", "restart reply", "dials, current", "failed", [], "not of this connection"],
  ["answering", "restart reply", "waits, current", "answering", [], "not of this connection"],
  ["waiting", "restart reply", "waits, current", "waiting", [], "not of this connection"],
  ["failed", "restart reply", "waits, current", "failed", [], "not of this connection"],
  ["failed", "dial", "dials, older", "offering", ["dial"], "the other side asks: {}"],
  ["failed", "dial", "dials, current", "offering", ["dial"], "the other side asks: {}"],
  ["failed", "dial", "dials, newer", "offering", ["dial"], "the other side asks: {}"],
  ["offering", "dial", "dials, older", "offering", [], "dialling already"],
  ["offered", "dial", "dials, older", "offered", [], "dialling already"],
  ["checking", "dial", "dials, older", "checking", [], "dialling already"],
  ["connected", "dial", "dials, older", "connected", [], "dialling already"],
  ["disconnected", "dial", "dials, older", "disconnected", [], "dialling already"],
  ["offering", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["offered", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["checking", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["connected", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["disconnected", "dial", "dials, newer", "offering", ["dial"], "the other side is ahead: {}"],
  ["offering", "dial", "dials, current", "offering", [], "dialling already"],
  ["offering", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["offered", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["checking", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["connected", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["disconnected", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["failed", "stale", "dials, newer", "offering", ["dial"], "the other side is ahead of our offer"],
  ["offering", "stale", "dials, current", "offering", ["dial"], "the other side is ahead of our offer"],
  ["offered", "stale", "dials, current", "offering", ["dial"], "the other side is ahead of our offer"],
  ["checking", "stale", "dials, current", "checking", [], "an offer that is over"],
  ["connected", "stale", "dials, current", "connected", [], "an offer that is over"],
  ["disconnected", "stale", "dials, current", "disconnected", [], "an offer that is over"],
  ["failed", "stale", "dials, current", "failed", [], "an attempt that failed"],
  ["offering", "stale", "dials, older", "offering", [], "an epoch that is over"],
  ["offered", "stale", "dials, older", "offered", [], "an epoch that is over"],
  ["checking", "stale", "dials, older", "checking", [], "an epoch that is over"],
  ["connected", "stale", "dials, older", "connected", [], "an epoch that is over"],
  ["disconnected", "stale", "dials, older", "disconnected", [], "an epoch that is over"],
  ["failed", "stale", "dials, older", "failed", [], "an epoch that is over"],
  ["waiting", "stale", "waits, older", "waiting", [], "the other side is to dial"],
  ["waiting", "stale", "waits, current", "waiting", [], "the other side is to dial"],
  ["waiting", "stale", "waits, newer", "waiting", [], "the other side is to dial"],
  ["answering", "stale", "waits, older", "answering", [], "the other side is to dial"],
  ["answering", "stale", "waits, current", "answering", [], "the other side is to dial"],
  ["answering", "stale", "waits, newer", "answering", [], "the other side is to dial"],
  ["checking", "stale", "waits, older", "checking", [], "the other side is to dial"],
  ["checking", "stale", "waits, current", "checking", [], "the other side is to dial"],
  ["checking", "stale", "waits, newer", "checking", [], "the other side is to dial"],
  ["connected", "stale", "waits, older", "connected", [], "the other side is to dial"],
  ["connected", "stale", "waits, current", "connected", [], "the other side is to dial"],
  ["connected", "stale", "waits, newer", "connected", [], "the other side is to dial"],
  ["disconnected", "stale", "waits, older", "disconnected", [], "the other side is to dial"],
  ["disconnected", "stale", "waits, current", "disconnected", [], "the other side is to dial"],
  ["disconnected", "stale", "waits, newer", "disconnected", [], "the other side is to dial"],
  ["failed", "stale", "waits, older", "failed", [], "the other side is to dial"],
  ["failed", "stale", "waits, current", "failed", [], "the other side is to dial"],
  ["failed", "stale", "waits, newer", "failed", [], "the other side is to dial"],
  ["offering", "offer made", "current", "offered", ["sendOffer"], "offer sent"],
  ["answering", "answer made", "current", "checking", ["sendAnswer"], "answer sent"],
  ["checking", "opened", "current", "connected", [], "connected"],
  ["disconnected", "heard", "current", "connected", [], "heard again"],
  ["offering", "candidates found", "current", "offering", ["trickle"], "candidates"],
  ["offered", "candidates found", "current", "offered", ["trickle"], "candidates"],
  ["answering", "candidates found", "current", "answering", ["trickle"], "candidates"],
  ["checking", "candidates found", "current", "checking", ["trickle"], "candidates"],
  ["connected", "candidates found", "current", "connected", ["trickle"], "candidates"],
  ["disconnected", "candidates found", "current", "disconnected", ["trickle"], "candidates"],
  ["offering", "selected", "current", "offering", ["select"], "a candidate pair was selected"],
  ["offered", "selected", "current", "offered", ["select"], "a candidate pair was selected"],
  ["answering", "selected", "current", "answering", ["select"], "a candidate pair was selected"],
  ["checking", "selected", "current", "checking", ["select"], "a candidate pair was selected"],
  ["connected", "selected", "current", "connected", ["select"], "a candidate pair was selected"],
  ["disconnected", "selected", "current", "disconnected", ["select"], "a candidate pair was selected"],
  ["checking", "restart report", "current", "checking", ["handOn"], "an ICE restart"],
  ["connected", "restart report", "current", "connected", ["handOn"], "an ICE restart"],
  ["disconnected", "restart report", "current", "disconnected", ["handOn"], "an ICE restart"],
  ["waiting", "offer made", "older", "waiting", [], "a connection that is gone"],
  ["offering", "offer made", "older", "offering", [], "a connection that is gone"],
  ["offered", "offer made", "older", "offered", [], "a connection that is gone"],
  ["answering", "offer made", "older", "answering", [], "a connection that is gone"],
  ["checking", "offer made", "older", "checking", [], "a connection that is gone"],
  ["connected", "offer made", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "offer made", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "offer made", "older", "failed", [], "a connection that is gone"],
  ["closed", "offer made", "older", "closed", [], "a connection that is gone"],
  ["waiting", "offer made", "current", "waiting", [], "a connection that is gone"],
  ["failed", "offer made", "current", "failed", [], "a connection that is gone"],
  ["closed", "offer made", "current", "closed", [], "a connection that is gone"],
  ["waiting", "answer made", "older", "waiting", [], "a connection that is gone"],
  ["offering", "answer made", "older", "offering", [], "a connection that is gone"],
  ["offered", "answer made", "older", "offered", [], "a connection that is gone"],
  ["answering", "answer made", "older", "answering", [], "a connection that is gone"],
  ["checking", "answer made", "older", "checking", [], "a connection that is gone"],
  ["connected", "answer made", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "answer made", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "answer made", "older", "failed", [], "a connection that is gone"],
  ["closed", "answer made", "older", "closed", [], "a connection that is gone"],
  ["waiting", "answer made", "current", "waiting", [], "a connection that is gone"],
  ["failed", "answer made", "current", "failed", [], "a connection that is gone"],
  ["closed", "answer made", "current", "closed", [], "a connection that is gone"],
  ["waiting", "opened", "older", "waiting", [], "a connection that is gone"],
  ["offering", "opened", "older", "offering", [], "a connection that is gone"],
  ["offered", "opened", "older", "offered", [], "a connection that is gone"],
  ["answering", "opened", "older", "answering", [], "a connection that is gone"],
  ["checking", "opened", "older", "checking", [], "a connection that is gone"],
  ["connected", "opened", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "opened", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "opened", "older", "failed", [], "a connection that is gone"],
  ["closed", "opened", "older", "closed", [], "a connection that is gone"],
  ["waiting", "opened", "current", "waiting", [], "a connection that is gone"],
  ["failed", "opened", "current", "failed", [], "a connection that is gone"],
  ["closed", "opened", "current", "closed", [], "a connection that is gone"],
  ["waiting", "lost", "older", "waiting", [], "a connection that is gone"],
  ["offering", "lost", "older", "offering", [], "a connection that is gone"],
  ["offered", "lost", "older", "offered", [], "a connection that is gone"],
  ["answering", "lost", "older", "answering", [], "a connection that is gone"],
  ["checking", "lost", "older", "checking", [], "a connection that is gone"],
  ["connected", "lost", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "lost", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "lost", "older", "failed", [], "a connection that is gone"],
  ["closed", "lost", "older", "closed", [], "a connection that is gone"],
  ["waiting", "lost", "current", "waiting", [], "a connection that is gone"],
  ["failed", "lost", "current", "failed", [], "a connection that is gone"],
  ["closed", "lost", "current", "closed", [], "a connection that is gone"],
  ["waiting", "path lost", "older", "waiting", [], "a connection that is gone"],
  ["offering", "path lost", "older", "offering", [], "a connection that is gone"],
  ["offered", "path lost", "older", "offered", [], "a connection that is gone"],
  ["answering", "path lost", "older", "answering", [], "a connection that is gone"],
  ["checking", "path lost", "older", "checking", [], "a connection that is gone"],
  ["connected", "path lost", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "path lost", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "path lost", "older", "failed", [], "a connection that is gone"],
  ["closed", "path lost", "older", "closed", [], "a connection that is gone"],
  ["waiting", "path lost", "current", "waiting", [], "a connection that is gone"],
  ["failed", "path lost", "current", "failed", [], "a connection that is gone"],
  ["closed", "path lost", "current", "closed", [], "a connection that is gone"],
  ["waiting", "operation failed", "older", "waiting", [], "a connection that is gone"],
  ["offering", "operation failed", "older", "offering", [], "a connection that is gone"],
  ["offered", "operation failed", "older", "offered", [], "a connection that is gone"],
  ["answering", "operation failed", "older", "answering", [], "a connection that is gone"],
  ["checking", "operation failed", "older", "checking", [], "a connection that is gone"],
  ["connected", "operation failed", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "operation failed", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "operation failed", "older", "failed", [], "a connection that is gone"],
  ["closed", "operation failed", "older", "closed", [], "a connection that is gone"],
  ["waiting", "operation failed", "current", "waiting", [], "a connection that is gone"],
  ["failed", "operation failed", "current", "failed", [], "a connection that is gone"],
  ["closed", "operation failed", "current", "closed", [], "a connection that is gone"],
  ["waiting", "candidates found", "older", "waiting", [], "a connection that is gone"],
  ["offering", "candidates found", "older", "offering", [], "a connection that is gone"],
  ["offered", "candidates found", "older", "offered", [], "a connection that is gone"],
  ["answering", "candidates found", "older", "answering", [], "a connection that is gone"],
  ["checking", "candidates found", "older", "checking", [], "a connection that is gone"],
  ["connected", "candidates found", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "candidates found", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "candidates found", "older", "failed", [], "a connection that is gone"],
  ["closed", "candidates found", "older", "closed", [], "a connection that is gone"],
  ["waiting", "candidates found", "current", "waiting", [], "a connection that is gone"],
  ["failed", "candidates found", "current", "failed", [], "a connection that is gone"],
  ["closed", "candidates found", "current", "closed", [], "a connection that is gone"],
  ["waiting", "selected", "older", "waiting", [], "a connection that is gone"],
  ["offering", "selected", "older", "offering", [], "a connection that is gone"],
  ["offered", "selected", "older", "offered", [], "a connection that is gone"],
  ["answering", "selected", "older", "answering", [], "a connection that is gone"],
  ["checking", "selected", "older", "checking", [], "a connection that is gone"],
  ["connected", "selected", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "selected", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "selected", "older", "failed", [], "a connection that is gone"],
  ["closed", "selected", "older", "closed", [], "a connection that is gone"],
  ["waiting", "selected", "current", "waiting", [], "a connection that is gone"],
  ["failed", "selected", "current", "failed", [], "a connection that is gone"],
  ["closed", "selected", "current", "closed", [], "a connection that is gone"],
  ["waiting", "restart report", "older", "waiting", [], "a connection that is gone"],
  ["offering", "restart report", "older", "offering", [], "a connection that is gone"],
  ["offered", "restart report", "older", "offered", [], "a connection that is gone"],
  ["answering", "restart report", "older", "answering", [], "a connection that is gone"],
  ["checking", "restart report", "older", "checking", [], "a connection that is gone"],
  ["connected", "restart report", "older", "connected", [], "a connection that is gone"],
  ["disconnected", "restart report", "older", "disconnected", [], "a connection that is gone"],
  ["failed", "restart report", "older", "failed", [], "a connection that is gone"],
  ["closed", "restart report", "older", "closed", [], "a connection that is gone"],
  ["waiting", "restart report", "current", "waiting", [], "a connection that is gone"],
  ["failed", "restart report", "current", "failed", [], "a connection that is gone"],
  ["closed", "restart report", "current", "closed", [], "a connection that is gone"],
  ["connected", "silence", "", "disconnected", ["restart"], "nothing heard for {} s"],
  ["connected", "path lost", "current", "disconnected", ["restart"], "path lost: {}"],
  ["checking", "path lost", "current", "checking", ["restart"], "path lost: {}"],
  ["disconnected", "path lost", "current", "disconnected", ["restart"], "path lost: {}"],
  ["offering", "path lost", "current", "offering", [], "nothing goes over it yet"],
  ["offered", "path lost", "current", "offered", [], "nothing goes over it yet"],
  ["answering", "path lost", "current", "answering", [], "nothing goes over it yet"],
  ["checking", "restart", "", "checking", ["restartAnew"], "{}"],
  ["connected", "restart", "", "connected", ["restartAnew"], "{}"],
  ["disconnected", "restart", "", "disconnected", ["restartAnew"], "{}"],
  ["offering", "restart", "", "offering", ["restartLater"], "{}"],
  ["offered", "restart", "", "offered", ["restartLater"], "{}"],
  ["answering", "restart", "", "answering", ["restartLater"], "{}"],
  ["new", "restart", "", "new", [], "no connection to restart"],
  ["waiting", "restart", "", "waiting", [], "no connection to restart"],
  ["failed", "restart", "", "failed", [], "no connection to restart"],
  ["closed", "restart", "", "closed", [], "no connection to restart"],
  ["checking", "deadline", "dials, not restarted", "checking", ["extend", "restart"], "not connected within {} s"],
  ["checking", "deadline", "waits, not restarted", "checking", ["extend"], "not connected within {} s"],
  ["offering", "deadline", "dials, first", "offering", ["countFailure", "dial"], "not connected within {} s"],
  ["offered", "deadline", "dials, first", "offering", ["countFailure", "dial"], "not connected within {} s"],
  ["checking", "deadline", "dials, first", "offering", ["countFailure", "dial"], "not connected within {} s"],
  ["offering", "deadline", "dials, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["offered", "deadline", "dials, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["checking", "deadline", "dials, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["answering", "deadline", "waits, first", "waiting", ["countFailure", "drop", "ask"], "not connected within {} s"],
  ["checking", "deadline", "waits, first", "waiting", ["countFailure", "drop", "ask"], "not connected within {} s"],
  ["answering", "deadline", "waits, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["checking", "deadline", "waits, again", "failed", ["countFailure", "drop"], "not connected within {} s"],
  ["disconnected", "deadline", "dials, first", "offering", ["countFailure", "dial"], "did not come back within {} s"],
  ["disconnected", "deadline", "dials, again", "failed", ["countFailure", "drop"], "did not come back within {} s"],
  ["disconnected", "deadline", "waits, first", "waiting", ["countFailure", "drop", "ask"], "did not come back within {} s"],
  ["disconnected", "deadline", "waits, again", "failed", ["countFailure", "drop"], "did not come back within {} s"],
  ["offering", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["offered", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["checking", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["connected", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["disconnected", "lost", "dials, first", "offering", ["countFailure", "dial"], "connection lost: {}"],
  ["offering", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["offered", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["checking", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["connected", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["disconnected", "lost", "dials, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["answering", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["checking", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["connected", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["disconnected", "lost", "waits, first", "waiting", ["countFailure", "drop", "ask"], "connection lost: {}"],
  ["answering", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["checking", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["connected", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["disconnected", "lost", "waits, again", "failed", ["countFailure", "drop"], "connection lost: {}"],
  ["offering", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["offered", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["checking", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["connected", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["disconnected", "operation failed", "dials, first", "offering", ["countFailure", "dial"], "{}"],
  ["offering", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["offered", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["checking", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["connected", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["disconnected", "operation failed", "dials, again", "failed", ["countFailure", "drop"], "{}"],
  ["answering", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["checking", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["connected", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["disconnected", "operation failed", "waits, first", "waiting", ["countFailure", "drop", "ask"], "{}"],
  ["answering", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["checking", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["connected", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["disconnected", "operation failed", "waits, again", "failed", ["countFailure", "drop"], "{}"],
  ["offered", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["checking", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["connected", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["disconnected", "dial", "dials, first", "offering", ["countFailure", "dial"], "the other side failed: {}"],
  ["offered", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["checking", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["connected", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["disconnected", "dial", "dials, again", "failed", ["countFailure", "drop"], "the other side failed: {}"],
  ["waiting", "deadline", "waits, first", "failed", ["countFailure", "ask"], "not dialled within {} s"],
  ["waiting", "deadline", "waits, again", "failed", ["countFailure", "ask"], "not dialled within {} s"],
  ["failed", "deadline", "dials, again", "offering", ["dial"], "trying again"],
  ["failed", "deadline", "waits, again", "failed", ["ask", "waitMore"], "asking again"],
  ["failed", "deadline", "unreachable", "failed", ["waitMore"], "no signalling to the peer"],
  ["failed", "reachable", "dials", "offering", ["dial"], "signalling is back"],
  ["waiting", "reachable", "waits", "waiting", ["ask"], "signalling is back"],
  ["failed", "reachable", "waits", "failed", ["ask"], "signalling is back"],
  ["checking", "reachable", "dials", "checking", ["restartNow"], "signalling is back"],
  ["checking", "reachable", "waits", "checking", ["restartNow"], "signalling is back"],
  ["connected", "reachable", "dials", "connected", ["restartNow"], "signalling is back"],
  ["connected", "reachable", "waits", "connected", ["restartNow"], "signalling is back"],
  ["disconnected", "reachable", "dials", "disconnected", ["restartNow"], "signalling is back"],
  ["disconnected", "reachable", "waits", "disconnected", ["restartNow"], "signalling is back"],
  ["offering", "reachable", "dials", "offering", [], "nothing to mend"],
  ["offered", "reachable", "dials", "offered", [], "nothing to mend"],
  ["answering", "reachable", "waits", "answering", [], "nothing to mend"],
  ["new", "close", "", "closed", ["drop"], "{}"],
  ["waiting", "close", "", "closed", ["drop"], "{}"],
  ["offering", "close", "", "closed", ["drop"], "{}"],
  ["offered", "close", "", "closed", ["drop"], "{}"],
  ["answering", "close", "", "closed", ["drop"], "{}"],
  ["checking", "close", "", "closed", ["drop"], "{}"],
  ["connected", "close", "", "closed", ["drop"], "{}"],
  ["disconnected", "close", "", "closed", ["drop"], "{}"],
  ["failed", "close", "", "closed", ["drop"], "{}"],
  ["closed", "close", "", "closed", ["drop"], "{}"],
  // </generated>
];
const LINK_ROWS = new Map(LINK_TABLE.map((row) => [`${row[0]}, ${row[1]}, ${row[2]}`, row]));

/** @type {ReadonlySet<LinkState>} */
const UP = new Set(["connected", "disconnected"]);
/** @type {ReadonlySet<LinkState>} */
const ATTEMPTING = new Set(["offering", "offered", "answering", "checking"]);
/** @type {ReadonlySet<LinkState>} */
const HAS_CONNECTION = new Set([...ATTEMPTING, ...UP]);
/** @type {ReadonlySet<LinkState>} */
const HAS_NONE = new Set(["waiting", "failed", "closed"]);
/** @type {ReadonlySet<LinkInput>} */
const LINK_FROM_PEER = new Set(["offer", "answer", "candidates", "dial", "stale", "restart offer", "restart reply"]);
/** @type {Record<LinkMessage["kind"], LinkInput>} */
const LINK_TAG = { Offer: "offer", Answer: "answer", Candidates: "candidates", Dial: "dial", Stale: "stale" };

// Half of what the schema takes. The other side can't bring us beyond it, and the attempts of our
// own that are left then last for decades: so no two attempts ever have the same epoch.
const MAX_REMOTE_EPOCH = 2 ** 30;
// An attempt costs a connection; the other side can't make us begin more than these in a row, and
// one a second after that.
const BEGINS = new Set(["dial", "answer"]);
const BEGIN_BURST = 10;
// What brings candidates of the other side, which are at most MAX_CANDIDATES in one attempt.
const ADDS = new Set(["answer", "acceptAnswer", "addCandidates", "holdCandidates"]);

// --- outputs and values --------------------------------------------------------------------------

/**
 * Send a check over the connection of this epoch; report PONG when it is answered.
 * @typedef {{kind: "Ping", epoch: number, nonce: number}} LinkPing
 */
/**
 * The state has changed.
 * @typedef {{kind: "StateChanged", previous: LinkState, state: LinkState, reason: string}} StateChanged
 */
/**
 * Another pair carries data, or another generation.
 * @typedef {{kind: "PairSelected", reason: string}} PairSelected
 */
/** @typedef {Operate | SendSignal | LinkPing | StateChanged | PairSelected | Refuse} LinkOutput */

/**
 * One end of a candidate pair. `type`: `host`, `srflx`, `prflx` or `relay` (RFC 8445, section
 * 5.1.1). `server`, for a local `relay` candidate: the URL of its TURN server.
 * @typedef {{kind: "CandidateInfo", type: string, address: string, port: number, server: string | null}} CandidateInfo
 */
/**
 * Where data goes from and to (RFC 8445, section 4).
 * @typedef {{kind: "CandidatePair", local: CandidateInfo, remote: CandidateInfo}} CandidatePair
 */

/**
 * How data flows over a pair.
 * @param {CandidatePair} pair
 * @returns {"direct" | "turn"}
 */
function pathOf(pair) {
  return pair.local.type === "relay" || pair.remote.type === "relay" ? "turn" : "direct";
}

/**
 * What came of a link, from when its two incarnations first met.
 * @typedef {object} History
 * @property {"History"} kind
 * @property {number} attempts  connections that were begun
 * @property {number} connections  how many of them connected
 * @property {number} withdrawn  how many of them were under way when one of the two was gone
 * @property {number} connectTime  seconds from the beginning of an attempt to its success, of all
 *   together
 * @property {number} restarts  ICE restarts that took over
 * @property {number} fallbacks  how often data went over to the relay; kept by the node
 * @property {string} failure  why the latest attempt, ICE restart or path that failed did
 */

/** @returns {History} */
function newHistory() {
  return {
    kind: "History",
    attempts: 0,
    connections: 0,
    withdrawn: 0,
    connectTime: 0,
    restarts: 0,
    fallbacks: 0,
    failure: "",
  };
}

/**
 * What a link takes of the settings (MeshConfig). Times are seconds.
 * @typedef {object} LinkConfig
 * @property {"all" | "relay"} iceTransportPolicy
 * @property {number} connectTimeout
 * @property {number} candidatesTimeout
 * @property {number} restartTimeout
 * @property {number} upgradeFirst
 * @property {number} upgradeMax
 * @property {number} retryFirst
 * @property {number} retryMax
 * @property {number} pingInterval
 * @property {number} silenceTimeout
 * @property {number} disconnectedTimeout
 * @property {number} stableAfter
 */

/** @typedef {{epoch: number, message: LinkMessage}} LinkSignal */
/** @typedef {(restart: Restart) => RestartOutput[]} RestartCall */

// --- the machine ---------------------------------------------------------------------------------

/** The state machine of one link. See the top of this part for how it works. */
class Link {
  /** @type {LinkState} */
  state = "new";
  /** This side has the smaller id. */
  dials;
  /** The number of the latest attempt. */
  epoch;
  /** Whether signals get to the peer; kept by the node. */
  reachable = true;
  /** Whether the relay carries what this link does not; kept by the node. */
  carried = false;
  /**
   * The latest measured round trip in seconds.
   * @type {number | null}
   */
  rtt = null;
  history;
  /**
   * What data goes over, as far as the connection of this epoch has said.
   * @type {CandidatePair | null}
   */
  pair = null;
  /** The ICE generation that carries data. */
  generation = 0;

  #config;
  #incarnation;
  #random;
  #deadlines = new Deadlines();
  #backoff;
  #upgrade;
  #failures = 0;
  #recovering = false;
  // When it was pinged for the first time since it was heard.
  /** @type {number | null} */
  #askedAt = null;
  #heardAt = 0;
  #spokeAt = 0;
  #pingNonce = 0;
  /** @type {number | null} */
  #pingedAt = null;
  #begins = BEGIN_BURST;
  #beginsAt = 0;
  #begunAt = 0;
  #disconnectedAt = 0;
  // Of this attempt: the candidates of its first generation, its restarts, why another one is to
  // begin as soon as it can, and whether it was given time for one.
  #trickle;
  #restart;
  /** @type {string | null} */
  #wanted = null;
  #extended = false;
  /**
   * Candidates that overtook the offer of this epoch.
   * @type {{epoch: number, candidates: IceCandidate[], end: boolean} | null}
   */
  #held = null;
  /** @type {LinkOutput[]} */
  #out = [];
  /** @type {unknown} */
  #arg = null;
  #detail = "";

  /**
   * @param {LinkConfig} config
   * @param {object} options
   * @param {boolean} options.dials  this side has the smaller id
   * @param {string} options.incarnation  ours
   * @param {() => number} options.random  gives numbers in [0, 1) for the jitter
   * @param {number} [options.epoch]  where an earlier link between the same two incarnations ended
   * @param {History | null} [options.history]  what came of that one
   */
  constructor(config, { dials, incarnation, random, epoch = 0, history = null }) {
    this.dials = dials;
    this.epoch = epoch;
    this.history = history ?? newHistory();
    this.#config = config;
    this.#incarnation = incarnation;
    this.#random = random;
    this.#backoff = new Backoff(config.retryFirst, config.retryMax, 0.5);
    this.#upgrade = new Backoff(config.upgradeFirst, config.upgradeMax, 0);
    this.#trickle = new Trickle(epoch, 0, config.candidatesTimeout);
    this.#restart = this.#newRestart();
  }

  // --- what the shell reads ---

  /**
   * The state in the words of the public interface.
   * @returns {"new" | "connecting" | "connected" | "disconnected" | "failed" | "closed"}
   */
  get peerState() {
    switch (this.state) {
      case "connected":
      case "failed":
      case "closed":
        return this.state;
    }
    if (this.#recovering) return "disconnected";
    const begun = this.epoch !== 0 || (this.state !== "new" && this.state !== "waiting");
    return begun ? "connecting" : "new";
  }

  /** Whether a direct path exists, or did until a moment ago. */
  get alive() {
    return UP.has(this.state);
  }

  /** How many attempts failed, in all epochs. */
  get failures() {
    const { attempts, connections, withdrawn } = this.history;
    return attempts - this.#underWay - connections - withdrawn;
  }

  /** How many attempts are under way: one or none. */
  get #underWay() {
    return ATTEMPTING.has(this.state) ? 1 : 0;
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    return earliest(this.#deadlines.next(), this.#trickle.completeAt, this.#restart.nextDeadline());
  }

  // --- inputs ---

  /**
   * Begin: dial, or wait to be dialled.
   * @param {number} now
   */
  start(now) {
    return this.#feed("start", this.#role, now);
  }

  /**
   * A signal of the remote incarnation arrived.
   * @param {number} epoch
   * @param {LinkMessage} message
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  message(epoch, message, now) {
    let on = LINK_TAG[message.kind];
    let detail = "";
    switch (message.kind) {
      case "Offer":
      case "Answer":
      case "Candidates":
        if (message.generation) on = message.kind === "Offer" ? "restart offer" : "restart reply";
        break;
      case "Stale":
        epoch = message.epoch;
        break;
      case "Dial": {
        detail = message.reason;
        const answered = HAS_CONNECTION.has(this.state) && this.state !== "offering";
        if (this.dials && epoch === this.epoch && answered) return this.#failure(on, epoch, detail, now);
        break;
      }
    }
    if (epoch > MAX_REMOTE_EPOCH) {
      const text = `epoch ${epoch} is beyond ${MAX_REMOTE_EPOCH}`;
      return [{ kind: "Refuse", error: new ProtocolError(text, { code: "bad_epoch", field: "$.epoch" }) }];
    }
    const age = epoch < this.epoch ? "older" : epoch === this.epoch ? "current" : "newer";
    return this.#feed(on, `${this.#role}, ${age}`, now, { arg: { epoch, message }, detail });
  }

  /**
   * `MakeOffer` is done.
   * @param {number} epoch
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  offerMade(epoch, generation, sdp, now) {
    if (generation) return this.#report(epoch, (it) => it.offerMade(generation, sdp, now), now);
    return this.#feed("offer made", this.#age(epoch), now, { arg: sdp });
  }

  /**
   * `AcceptOffer` is done.
   * @param {number} epoch
   * @param {number} generation
   * @param {string} sdp
   * @param {number} now
   */
  answerMade(epoch, generation, sdp, now) {
    if (generation) return this.#report(epoch, (it) => it.answerMade(generation, sdp, now), now);
    return this.#feed("answer made", this.#age(epoch), now, { arg: sdp });
  }

  /**
   * An operation did not succeed. Candidates that can't be used change nothing, and an ICE restart
   * that failed ends that restart alone.
   * @param {number} epoch
   * @param {Operation} operation
   * @param {Error} error  a MeshError
   * @param {number} now
   */
  operationFailed(epoch, operation, error, now) {
    /** @type {LinkOutput[]} */
    const out = error instanceof ProtocolError ? [{ kind: "Refuse", error }] : [];
    if (operation.kind === "AddCandidates") return out;
    const generation = operation.kind === "CloseConnection" ? 0 : operation.generation;
    if (generation) out.push(...this.#report(epoch, (it) => it.operationFailed(generation, now), now));
    else out.push(...this.#failure("operation failed", epoch, error.message, now));
    return out;
  }

  /**
   * The connection found candidates of its own. They follow their description.
   * @param {number} epoch
   * @param {number} generation
   * @param {IceCandidate[]} candidates
   * @param {{end: boolean, now: number}} options
   */
  localCandidates(epoch, generation, candidates, { end, now }) {
    const arg = { generation, candidates, end };
    return this.#feed("candidates found", this.#age(epoch), now, { arg });
  }

  /**
   * Data goes over this pair from now on.
   * @param {number} epoch
   * @param {number} generation
   * @param {CandidatePair} pair
   * @param {number} now
   */
  selected(epoch, generation, pair, now) {
    return this.#feed("selected", this.#age(epoch), now, { arg: { generation, pair } });
  }

  /**
   * The message channel is open.
   * @param {number} epoch
   * @param {number} now
   */
  opened(epoch, now) {
    return this.#feed("opened", this.#age(epoch), now);
  }

  /**
   * The connection is over.
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  lost(epoch, reason, now) {
    return this.#failure("lost", epoch, reason, now);
  }

  /**
   * What data went over has ended; the connection waits for another generation.
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  pathLost(epoch, reason, now) {
    return this.#feed("path lost", this.#age(epoch), now, { detail: reason });
  }

  /**
   * Something arrived over the connection. Called for every frame.
   * @param {number} epoch
   * @param {number} now
   * @param {{answered?: boolean}} [options]  `answered`: the other side has heard of us as well
   * @returns {LinkOutput[]}
   */
  heard(epoch, now, { answered = false } = {}) {
    if (epoch !== this.epoch) return [];
    this.#heardAt = now;
    this.#askedAt = null;
    if (answered) this.#spokeAt = now;
    return this.state === "disconnected" ? this.#feed("heard", "current", now) : [];
  }

  /**
   * A frame was sent over the connection: no ping is needed for a while.
   * @param {number} now
   */
  spoke(now) {
    this.#spokeAt = now;
  }

  /**
   * The answer to a ping arrived. It is a sign of life even if nobody waits for it.
   * @param {number} epoch
   * @param {number} nonce
   * @param {number} now
   */
  pong(epoch, nonce, now) {
    if (epoch === this.epoch && nonce === this.#pingNonce && this.#pingedAt !== null) {
      this.rtt = now - this.#pingedAt;
      this.#pingedAt = null;
    }
    return this.heard(epoch, now);
  }

  /**
   * Measure the round trip now.
   * @param {number} now
   * @returns {LinkPing}
   */
  ping(now) {
    this.#pingNonce = (this.#pingNonce + 1) & 0x7fffffff;
    this.#pingedAt = this.#spokeAt = now;
    this.#askedAt ??= now;
    return { kind: "Ping", epoch: this.epoch, nonce: this.#pingNonce };
  }

  /**
   * Signals get to the peer, or don't.
   * @param {boolean} reachable
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  setReachable(reachable, now) {
    this.reachable = reachable;
    if (!reachable || this.state === "new" || this.state === "closed") return [];
    return this.#feed("reachable", this.#role, now);
  }

  /**
   * Begin an ICE restart as soon as there is a connection for it.
   *
   * One that is under way is out of date then. Nothing happens while no attempt is under way: the
   * next one has all that a restart would bring.
   * @param {string} reason
   * @param {number} now
   */
  restart(reason, now) {
    return this.#feed("restart", "", now, { detail: reason });
  }

  /**
   * End the link for good.
   * @param {string} reason
   * @param {number} now
   */
  close(reason, now) {
    this.history.withdrawn += this.#underWay;
    return this.#feed("close", "", now, { detail: reason });
  }

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    /** @type {LinkOutput[]} */
    const out = [];
    for (const [name, at] of this.#deadlines.due(now)) out.push(...this.#due(name, at, now));
    if (isDue(this.#trickle.completeAt, now)) out.push(...this.#trickle.complete());
    if (isDue(this.#restart.nextDeadline(), now)) {
      const underWay = this.#restart.state !== "idle";
      out.push(...this.#toRestart((it) => it.tick(now), now));
      const givenUp = underWay && this.#restart.state === "idle";
      if (givenUp && this.state === "disconnected") out.push(...this.#beginRestart("still disconnected", now));
    }
    return out;
  }

  /**
   * What a deadline brings, unless an earlier one of the same moment has ended the state that it
   * was for.
   * @param {string} name
   * @param {number} at
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  #due(name, at, now) {
    const connected = this.state === "connected";
    const disconnected = this.state === "disconnected";
    switch (name) {
      case "ping":
        return this.alive ? this.#pingDue(now) : [];
      case "silence":
        return connected ? this.#silenceDue(at, now) : [];
      case "stable":
        // It has earned a new beginning; one that did not hold is the same trouble going on,
        // however often it connected in between.
        if (connected) {
          this.#failures = 0;
          this.#backoff.reset();
        }
        return [];
      case "again":
        return disconnected ? this.#beginRestart("still disconnected", now) : [];
      case "upgrade": {
        if (!connected) return [];
        const out = this.#beginRestart("looking for a better path", now);
        this.#armUpgrade(now);
        return out;
      }
      case "state":
        return this.#stateDue(now);
      default:
        return [];
    }
  }

  /** @param {number} now */
  #stateDue(now) {
    if (this.state === "failed" && !this.reachable) return this.#feed("deadline", "unreachable", now);
    const timeout = this.#config.connectTimeout;
    if (this.state === "checking" && !this.#extended) {
      return this.#feed("deadline", `${this.#role}, not restarted`, now, { detail: general(timeout) });
    }
    const waited =
      this.state === "disconnected" ? now - this.#disconnectedAt : timeout * (this.#extended ? 2 : 1);
    return this.#failure("deadline", this.epoch, general(waited, 3), now);
  }

  // --- the machine ---

  get #role() {
    return this.dials ? "dials" : "waits";
  }

  /** @param {number} epoch */
  #age(epoch) {
    if (epoch > this.epoch) {
      throw new UnexpectedInput(`epoch ${epoch} has not begun; the link is at ${this.epoch}`);
    }
    return epoch === this.epoch ? "current" : "older";
  }

  /**
   * @param {LinkInput} on
   * @param {number} epoch
   * @param {string} detail
   * @param {number} now
   */
  #failure(on, epoch, detail, now) {
    let condition = this.#age(epoch);
    if (condition === "current" && (on === "deadline" || !HAS_NONE.has(this.state))) {
      condition = `${this.#role}, ${this.#failures ? "again" : "first"}`;
    }
    return this.#feed(on, condition, now, { detail });
  }

  /**
   * @param {LinkInput} on
   * @param {string} condition
   * @param {number} now
   * @param {{arg?: unknown, detail?: string}} [options]
   * @returns {LinkOutput[]}
   */
  #feed(on, condition, now, { arg = null, detail = "" } = {}) {
    const row = LINK_ROWS.get(`${this.state}, ${on}, ${condition}`);
    if (row === undefined) {
      const text = `${on} (${condition || "no condition"}) is not expected in state ${this.state}`;
      if (!LINK_FROM_PEER.has(on)) throw new UnexpectedInput(text);
      return refuse(text, `unexpected_${on.replace(" ", "_")}`, "$.type");
    }
    const [, , , next, actions, reason] = row;
    if (actions.some((action) => ADDS.has(action)) && !this.#fits(/** @type {LinkSignal} */ (arg))) {
      const text = `${on} would bring the attempt to more than ${MAX_CANDIDATES} candidates`;
      return refuse(text, "too_many_candidates", "$");
    }
    const begins = LINK_FROM_PEER.has(on) && actions.some((action) => BEGINS.has(action));
    if (begins && !this.#mayBegin(now)) {
      const text = `${on} would begin another attempt, after too many: one a second is taken`;
      return refuse(text, "too_many_attempts", "$.type");
    }
    this.#arg = arg;
    this.#detail = reason.replace("{}", () => detail);
    this.#out = [];
    for (const action of actions) Link.#ACTIONS[action](this, now);
    this.#setState(next, now);
    const out = this.#out;
    this.#out = [];
    this.#arg = null;
    return out;
  }

  /**
   * @param {LinkState} next
   * @param {number} now
   */
  #setState(next, now) {
    const previous = this.state;
    this.state = next;
    if (previous === next) return;
    const config = this.#config;
    switch (next) {
      case "connected":
        this.#deadlines.clear("state");
        this.#deadlines.clear("again");
        if (previous === "checking") {
          this.#heardAt = now;
          this.#askedAt = null;
          this.history.connections += 1;
          this.history.connectTime += now - this.#begunAt;
          this.#recovering = true;
          // Measured at once, so that users see a round trip from the first moment.
          this.#out.push(this.ping(now));
        }
        this.#deadlines.set("silence", now + config.silenceTimeout);
        this.#deadlines.set("stable", now + config.stableAfter);
        this.#setPing(this.#spokeAt + this.#pingAfter);
        this.#armUpgrade(now);
        break;
      case "checking":
        this.#restartNow(now);
        break;
      case "disconnected":
        this.history.failure = this.#detail;
        this.#disconnectedAt = now;
        this.#deadlines.set("ping", now);
        this.#deadlines.set("state", now + config.disconnectedTimeout);
        break;
      case "waiting":
        this.#deadlines.set("state", now + config.connectTimeout);
        break;
      case "failed":
        this.#recovering = false;
        this.#waitMore(now);
        break;
      case "closed":
        this.#deadlines.clearAll();
        break;
      default: // An attempt has one deadline for all its states; it was set when it began.
    }
    if (next !== "connected") {
      this.#deadlines.clear("silence");
      this.#deadlines.clear("stable");
    }
    if (!UP.has(next)) this.#deadlines.clear("ping");
    this.#out.push({ kind: "StateChanged", previous, state: next, reason: this.#detail });
  }

  get #pingAfter() {
    // Who pings is the one who speaks first: with the answer the other side has spoken too, so it
    // waits a little longer, but never so long that it would be taken for gone.
    const { pingInterval: interval, silenceTimeout: silence } = this.#config;
    if (this.state === "disconnected") return interval / 4; // a path that comes back is noticed soon, by both
    return this.dials ? interval : Math.min(1.5 * interval, (interval + silence) / 2);
  }

  /**
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  #pingDue(now) {
    // What was heard is no reason to be silent: the other side may send and send, and hear nothing
    // of us. Nor is what was said a reason not to ask: not all of it is answered.
    const last = this.#askedAt !== null ? this.#spokeAt : Math.min(this.#spokeAt, this.#heardAt);
    const at = last + this.#pingAfter;
    if (at > now) {
      this.#setPing(at);
      return [];
    }
    this.#setPing(now + this.#pingAfter);
    return [this.ping(now)];
  }

  get #grid() {
    // All the links of a page wake it up together, and not one by one.
    const { pingInterval: interval, silenceTimeout: silence } = this.#config;
    return Math.min(interval, silence - interval) / 4;
  }

  /** @param {number} at */
  #setPing(at) {
    const grid = this.#grid;
    let step = Math.ceil(at / grid);
    if (step * grid < at) step += 1; // by a rounding error, but then it would be due for ever
    const due = step * grid;
    this.#deadlines.set("ping", due);
    // Where something was heard lately, the next of these looks whether that is still so.
    const silentAt = this.#heardAt + this.#config.silenceTimeout;
    const watched = this.#deadlines.get("silence") !== null;
    if (this.state === "connected" && silentAt <= due && !watched) this.#deadlines.set("silence", silentAt);
  }

  /**
   * @param {number} at
   * @param {number} now
   * @returns {LinkOutput[]}
   */
  #silenceDue(at, now) {
    const silentAt = this.#heardAt + this.#config.silenceTimeout;
    if (silentAt > now) {
      const nextLook = this.#deadlines.get("ping");
      if (nextLook === null || silentAt <= nextLook) this.#deadlines.set("silence", silentAt);
      return [];
    }
    if (now - at > STALL) this.#askedAt = null;
    // Who asks late, as a page that is slowed down, waits as long for the answer as others.
    const answerAt = (this.#askedAt ?? now) + this.#config.silenceTimeout - this.#pingAfter - this.#grid;
    if (answerAt > now) {
      this.#deadlines.set("silence", answerAt);
      return this.#askedAt === null ? [this.ping(now)] : [];
    }
    return this.#feed("silence", "", now, { detail: general(now - this.#heardAt, 3) });
  }

  /**
   * Whether the other side may make us begin an attempt: a token bucket.
   * @param {number} now
   */
  #mayBegin(now) {
    this.#begins = Math.min(BEGIN_BURST, this.#begins + (now - this.#beginsAt));
    this.#beginsAt = now;
    if (this.#begins < 1) return false;
    this.#begins -= 1;
    return true;
  }

  /**
   * Whether the attempt that this message is for may have the candidates in it.
   * @param {LinkSignal} signal
   */
  #fits({ epoch, message }) {
    let more = 0;
    if (message.kind === "Offer" || message.kind === "Answer") more = countCandidates(message.sdp);
    else if (message.kind === "Candidates") more = message.candidates.length;
    if (epoch === this.epoch) return this.#trickle.fits(more);
    if (this.#held?.epoch === epoch) more += this.#held.candidates.length;
    return more <= MAX_CANDIDATES;
  }

  // --- ICE restarts ---

  #newRestart() {
    const mayBegin = (/** @type {number} */ now) => this.#mayBegin(now);
    return new Restart(this.#config, { epoch: this.epoch, dials: this.dials, mayBegin });
  }

  /**
   * @param {number} epoch
   * @param {RestartCall} call
   * @param {number} now
   */
  #report(epoch, call, now) {
    return this.#feed("restart report", this.#age(epoch), now, { arg: call });
  }

  /**
   * @param {string} reason
   * @param {number} now
   * @param {{urgent?: boolean}} [options]
   * @returns {RestartOutput[]}
   */
  #beginRestart(reason, now, { urgent = false } = {}) {
    if (!this.reachable) {
      // Its offer would only wait, and be out of date when it gets there.
      if (urgent || this.#restart.state === "idle") this.#wanted = reason;
      return [];
    }
    this.#wanted = null;
    return this.#toRestart((it) => it.begin(reason, now, { urgent }), now);
  }

  /**
   * @param {RestartCall} call
   * @param {number} now
   */
  #toRestart(call, now) {
    const restart = this.#restart;
    const config = this.#config;
    const previous = restart.state;
    const out = call(restart);
    if (restart.givenUp) {
      this.history.failure = `ICE restart ${restart.givenUp}`;
      restart.givenUp = "";
    }
    if (this.state === "disconnected" && restart.state !== previous) {
      if (restart.state === "checking") {
        // It was answered: it gets the time that it may take, if that is more; but only once over,
        // or restarts that are answered and lead nowhere could go on for ever.
        const latest = this.#disconnectedAt + config.disconnectedTimeout;
        const at = Math.min(now, latest) + config.connectTimeout;
        this.#deadlines.set("state", Math.max(at, this.#deadlines.get("state") ?? at));
      } else if (restart.state === "idle") {
        this.#deadlines.set("again", now + config.restartTimeout);
      }
    }
    return out;
  }

  /**
   * A path over TURN is a reason to look for a better one, now and then.
   * @param {number} now
   */
  #armUpgrade(now) {
    if (this.pair === null || pathOf(this.pair) !== "turn") {
      this.#upgrade.reset();
      this.#deadlines.clear("upgrade");
    } else if (
      this.dials &&
      this.state === "connected" &&
      this.#config.iceTransportPolicy === "all" &&
      this.#deadlines.get("upgrade") === null
    ) {
      this.#deadlines.set("upgrade", now + this.#upgrade.next(0));
    }
  }

  // --- actions, named in the table ---

  /** @type {Record<string, (it: Link, now: number) => void>} */
  static #ACTIONS = {
    dial: (it, now) => it.#dial(now),
    answer: (it, now) => it.#answer(now),
    drop: (it) => it.#drop(),
    sendOffer: (it) => it.#sendDescription("Offer"),
    sendAnswer: (it) => it.#sendDescription("Answer"),
    acceptAnswer: (it, now) => it.#acceptAnswer(now),
    addCandidates: (it, now) => it.#addCandidates(now),
    holdCandidates: (it) => it.#holdCandidates(),
    trickle: (it, now) => it.#trickleFound(now),
    select: (it, now) => it.#select(now),
    handOn: (it, now) => it.#handOn(now),
    disown: (it) => it.#disown(),
    restart: (it, now) => it.#out.push(...it.#beginRestart(it.#detail, now)),
    restartAnew: (it, now) => it.#out.push(...it.#beginRestart(it.#detail, now, { urgent: true })),
    restartLater: (it) => (it.#wanted = it.#detail),
    restartNow: (it, now) => it.#restartNow(now),
    extend: (it, now) => it.#extend(now),
    ask: (it) => it.#send(it.epoch, { kind: "Dial", reason: printable(it.#detail, 200) }),
    replyStale: (it) => it.#send(it.epoch, { kind: "Stale", incarnation: it.#incarnation, epoch: it.epoch }),
    countFailure: (it) => it.#countFailure(),
    waitMore: (it, now) => it.#waitMore(now),
  };

  /**
   * @param {number} epoch
   * @param {Operation} operation
   * @param {number} now
   */
  #begin(epoch, operation, now) {
    this.#drop();
    this.epoch = epoch;
    this.history.attempts += 1;
    this.#begunAt = now;
    this.#forget();
    this.#deadlines.set("state", now + this.#config.connectTimeout);
    this.#operate(operation);
  }

  /** What belonged to one attempt alone. */
  #forget() {
    this.#trickle = new Trickle(this.epoch, 0, this.#config.candidatesTimeout);
    this.#restart = this.#newRestart();
    this.#wanted = null;
    this.#extended = false;
    this.#pingedAt = null;
    this.pair = null;
    this.generation = 0;
    this.#deadlines.clear("again");
    this.#deadlines.clear("upgrade");
  }

  /** @param {number} now */
  #dial(now) {
    // Past whatever the other side has seen, so that it does not take the offer for an old one.
    const seen = /** @type {LinkSignal | null} */ (this.#arg)?.epoch ?? 0;
    this.#begin(Math.max(this.epoch, seen) + 1, { kind: "MakeOffer", generation: 0 }, now);
  }

  /** @param {number} now */
  #answer(now) {
    const { epoch, message } = this.#signal;
    const { sdp } = /** @type {Offer} */ (message);
    const held = this.#held;
    this.#held = null;
    this.#begin(epoch, { kind: "AcceptOffer", sdp, generation: 0 }, now);
    this.#trickle.described(sdp, now);
    if (held?.epoch === epoch) this.#out.push(...this.#trickle.received(held.candidates, { end: held.end, now }));
  }

  #drop() {
    if (!HAS_CONNECTION.has(this.state)) return;
    this.#operate({ kind: "CloseConnection" });
    this.#forget();
  }

  /** @param {"Offer" | "Answer"} kind */
  #sendDescription(kind) {
    const sdp = /** @type {string} */ (this.#arg);
    this.#send(this.epoch, { kind, sdp, generation: 0 });
    this.#out.push(...this.#trickle.sent(sdp));
  }

  /** @param {number} now */
  #acceptAnswer(now) {
    const { sdp } = /** @type {Answer} */ (this.#signal.message);
    this.#trickle.described(sdp, now);
    this.#operate({ kind: "AcceptAnswer", sdp, generation: 0 });
  }

  /** @param {number} now */
  #addCandidates(now) {
    const { candidates, end } = /** @type {Candidates} */ (this.#signal.message);
    this.#out.push(...this.#trickle.received(candidates, { end, now }));
  }

  /** @param {number} now */
  #trickleFound(now) {
    const { generation, candidates, end } =
      /** @type {{generation: number, candidates: IceCandidate[], end: boolean}} */ (this.#arg);
    const found = generation
      ? this.#toRestart((it) => it.localCandidates(generation, candidates, { end }), now)
      : this.#trickle.found(candidates, { end });
    this.#out.push(...found);
  }

  /** @param {number} now */
  #select(now) {
    const { generation, pair } = /** @type {{generation: number, pair: CandidatePair}} */ (this.#arg);
    this.#out.push(...this.#toRestart((it) => it.selected(generation, now), now));
    if (generation === this.generation && isSamePair(pair, this.pair)) return;
    let reason = this.#detail;
    if (generation && generation !== this.generation) {
      this.history.restarts += 1;
      reason = `ICE restart took over: ${this.#restart.reason}`;
    }
    this.generation = generation;
    this.pair = pair;
    this.#out.push({ kind: "PairSelected", reason });
    this.#armUpgrade(now);
  }

  /** @param {number} now */
  #handOn(now) {
    const arg = /** @type {LinkSignal | RestartCall} */ (this.#arg);
    /** @type {RestartCall} */
    const call =
      typeof arg === "function"
        ? arg
        : (it) => it.message(/** @type {Offer | Answer | Candidates} */ (arg.message), now);
    this.#out.push(...this.#toRestart(call, now));
  }

  #disown() {
    this.#send(this.#signal.epoch, { kind: "Dial", reason: this.#detail });
  }

  /** @param {number} now */
  #restartNow(now) {
    if (this.#wanted !== null) this.#out.push(...this.#beginRestart(this.#wanted, now, { urgent: true }));
  }

  /** @param {number} now */
  #extend(now) {
    this.#extended = true;
    this.#deadlines.set("state", now + this.#config.connectTimeout);
  }

  #holdCandidates() {
    const { epoch, message } = this.#signal;
    const more = /** @type {Candidates} */ (message);
    if (this.#held === null || this.#held.epoch < epoch) this.#held = { epoch, candidates: [], end: false };
    if (this.#held.epoch !== epoch) return;
    this.#held.candidates.push(...more.candidates);
    this.#held.end ||= more.end;
  }

  #countFailure() {
    this.#failures += 1;
    this.history.failure = this.#detail;
  }

  /** @param {number} now */
  #waitMore(now) {
    // While the relay carries data there is no hurry.
    const backoff = this.carried ? this.#upgrade : this.#backoff;
    this.#deadlines.set("state", now + backoff.next(this.#random()));
  }

  /** @param {Operation} operation */
  #operate(operation) {
    this.#out.push({ kind: "Operate", epoch: this.epoch, operation });
  }

  /**
   * @param {number} epoch
   * @param {LinkMessage} body
   */
  #send(epoch, body) {
    this.#out.push({ kind: "SendSignal", epoch, body });
  }

  /** The message that was fed, where the row is for one. */
  get #signal() {
    return /** @type {LinkSignal} */ (this.#arg);
  }
}

/**
 * @param {string} text
 * @param {string} code
 * @param {string} field
 * @returns {Refuse[]}
 */
function refuse(text, code, field) {
  return [{ kind: "Refuse", error: new ProtocolError(text, { code, field }) }];
}

/**
 * Whether both are of the same two ends.
 * @param {CandidatePair} one
 * @param {CandidatePair | null} other
 */
function isSamePair(one, other) {
  return other !== null && isSameEnd(one.local, other.local) && isSameEnd(one.remote, other.remote);
}

/**
 * @param {CandidateInfo} one
 * @param {CandidateInfo} other
 */
function isSameEnd(one, other) {
  return (
    one.type === other.type &&
    one.address === other.address &&
    one.port === other.port &&
    one.server === other.server
  );
}

/**
 * A number in as few characters as `digits` significant ones allow: `2.5`, `8`, `1e+06`. As Python's
 * "g" writes it, so that a reason reads the same wherever it is from.
 * @param {number} value
 * @param {number} [digits]
 */
function general(value, digits = 6) {
  const [whole, exponent] = value.toExponential(digits - 1).split("e");
  let mantissa = whole;
  // Halfway between two numbers this takes the larger, Python the even one.
  const rest = value.toExponential(60).split("e")[0].replace(/[-.]/g, "").slice(digits);
  if (/^50*$/.test(rest) && "13579".includes(mantissa.slice(-1))) {
    mantissa = mantissa.slice(0, -1) + (Number(mantissa.slice(-1)) - 1);
  }
  const power = Number(exponent);
  if (power >= -4 && power < digits) return String(Number(`${mantissa}e${power}`));
  const sign = power < 0 ? "-" : "+";
  return `${Number(mantissa)}e${sign}${String(Math.abs(power)).padStart(2, "0")}`;
}

// --- reports.js ----------------------------------------------------------------------------------

// Which links the signalling service is told about, and when.
//
// All of them after each welcome, as it may know nothing. Then each that has changed, soon after it
// did and together with others; and at the interval that the service asks for, those whose figures
// are others than it was told. A link that ended is told once more.

/** Seconds from a change until it is told: what follows from it is told with it. */
const REPORT_DELAY = 0.2;
// Of links that ended and were not told of. While the service is away nobody comes, so there are no
// more than members of the room; this holds whatever it does.
const MAX_ENDED_LINKS = 1000;

/** What of one node's links is to be told. Nothing is, until it is `wanted`. */
class Reports {
  #interval = 0;
  #away = true;
  /** @type {Map<string, LinkReport>} */
  #told = new Map();
  /** By `incarnationKey`. @type {Map<string, LinkReport>} */
  #ended = new Map();
  /** @type {Set<string>} */
  #changed = new Set();
  #all = false;
  /** @type {number | null} */
  #soonAt = null;
  /** @type {number | null} */
  #dueAt = null;

  // --- inputs ---

  /**
   * The service is there, and wants reports at least so often (seconds); 0: none.
   * @param {number} interval
   * @param {number} now
   */
  wanted(interval, now) {
    this.lost();
    this.#interval = interval;
    if (interval <= 0) {
      this.#ended.clear();
      return;
    }
    this.#away = false;
    this.#all = true;
    this.#soonAt = now + REPORT_DELAY;
    this.#dueAt = now + interval;
  }

  /** The service can't be reached. */
  lost() {
    this.#away = true;
    this.#told.clear();
    this.#soonAt = this.#dueAt = null;
  }

  /**
   * Something happened to the link with this peer. Costs little, whatever it was.
   * @param {string} peerId
   * @param {number} now
   */
  changed(peerId, now) {
    if (this.#away) return;
    this.#changed.add(peerId);
    this.#soonAt ??= now + REPORT_DELAY;
  }

  /**
   * This peer has a seat again: what was told of the link with it while it had none, or had lost it,
   * the service may not know.
   * @param {string} peerId
   * @param {number} now
   */
  unknown(peerId, now) {
    this.#told.delete(peerId);
    this.changed(peerId, now);
  }

  /**
   * A link is over.
   * @param {LinkReport} last told instead of it
   * @param {number} now
   */
  ended(last, now) {
    this.#told.delete(last.peerId);
    this.#changed.delete(last.peerId);
    if (this.#interval <= 0) return;
    this.#ended.set(incarnationKey(last), last);
    if (this.#ended.size > MAX_ENDED_LINKS) {
      const [oldest] = this.#ended.keys();
      this.#ended.delete(oldest);
    }
    if (!this.#away) this.#soonAt ??= now + REPORT_DELAY;
  }

  /** When `due` is wanted next. */
  nextDeadline() {
    return earliest(this.#soonAt, this.#dueAt);
  }

  // --- what is to be told ---

  /**
   * What is to be told now, each incarnation once.
   * @param {number} now
   * @param {{has: (peerId: string) => boolean, keys: () => Iterable<string>}} peers who is there
   * @param {(peerId: string) => LinkReport} report makes one's
   */
  due(now, peers, report) {
    const at = this.nextDeadline();
    if (at === null || at > now) return [];
    const figures = this.#all || (this.#dueAt !== null && this.#dueAt <= now);
    /** @type {LinkReport[]} */
    const out = [];
    for (const last of this.#ended.values()) {
      const { peerId, incarnation } = last;
      // Who is back counts on.
      if (peers.has(peerId) && report(peerId).incarnation === incarnation) this.#changed.add(peerId);
      else out.push(last);
    }
    for (const peerId of figures ? peers.keys() : this.#changed) {
      if (!peers.has(peerId)) continue; // it has left since
      const before = this.#told.get(peerId);
      const link = report(peerId);
      if (before && isSameReport(link, before, figures)) continue;
      this.#told.set(peerId, link);
      out.push(link);
    }
    this.#ended.clear();
    this.#changed.clear();
    this.#all = false;
    this.#soonAt = null;
    if (figures) this.#dueAt = now + this.#interval;
    return out;
  }
}

/** @param {LinkReport} link */
const incarnationKey = ({ peerId, incarnation }) => `${incarnation} ${peerId}`;

// Figures that change while all is well: not worth telling soon.
const FIGURES = new Set(["rtt", "connectTime", "messages", "bytesSent", "bytesReceived"]);

/**
 * Whether both say the same. Without `figures` only what is worth telling soon counts, of the round
 * trip whether there is one.
 * @param {LinkReport} one
 * @param {LinkReport} other
 * @param {boolean} figures
 */
function isSameReport(one, other, figures) {
  const names = /** @type {(keyof LinkReport)[]} */ (Object.keys(one));
  if (names.some((name) => one[name] !== other[name] && (figures || !FIGURES.has(name)))) return false;
  return figures || (one.rtt === null) === (other.rtt === null);
}

// --- node.js -------------------------------------------------------------------------------------

// A whole peer without its I/O: the mesh, its links and their data, put together.
//
// The shell drives a `Node`: it is fed what happened and returns what is to be done.

/**
 * What a node wants done.
 * - Signal: hand this to the signalling service
 * - Run: run an operation on a connection, after those of the same peer that came before
 * - SendFrame: send this on a path, the epoch of a connection or `RELAY`; it may be lost with it
 * - Ready: this peer's `Node.delivery` may have something to pull, or room for more messages
 * - Probe: send a check over the connection of this epoch, and report `Node.ponged` when it is
 *   answered; no frame: what waits in the message channel does not delay it, and it is not resent
 * - Deliver: messages for the application
 * - Ponged: the other side answered a ping of the shell's
 * - RequestsRefused: these requests were accepted before it was known that the other side does not
 *   take them: they are larger than it takes, or on one channel more
 * - UseServers: the STUN and TURN servers that the signalling service names, from now on
 * - ReportLinks: tell the signalling service how these links stand
 * - Tell: tell the application
 * @typedef {{kind: "Signal", message: SignalOut}
 *   | {kind: "Run", peerId: string, incarnation: string, epoch: number, operation: Operation}
 *   | {kind: "SendFrame", peerId: string, path: number, data: Uint8Array}
 *   | {kind: "Ready", peerId: string}
 *   | {kind: "Probe", peerId: string, epoch: number, nonce: number}
 *   | {kind: "Deliver", peerId: string, path: Path, messages: Received[]}
 *   | {kind: "Ponged", peerId: string, nonce: number}
 *   | {kind: "RequestsRefused", peerId: string, numbers: number[]}
 *   | {kind: "UseServers", servers: IceServer[]}
 *   | {kind: "ReportLinks", links: LinkReport[]}
 *   | {kind: "Tell", event: any}} NodeOutput
 */

/** @typedef {"direct" | "turn" | "relay"} Path */
/** @typedef {"new" | "connecting" | "connected" | "disconnected" | "failed" | "closed"} PeerState */
/**
 * One STUN or TURN server (W3C WebRTC, RTCIceServer; URIs as in RFC 7064 and RFC 7065).
 * @typedef {{kind: "IceServer", urls: string[], username: string | null, credential: string | null}} IceServer
 */
/** @typedef {DeliveryConfig & LinkConfig & RouteConfig} NodeConfig */
/** @typedef {Welcome | MemberJoined | MemberLeft | MemberUpdated | SignalIn | Refused | IceServers | Notice | RestartIce} NodeSignal */

/** Seconds between two `BadInput` events about what a peer sends over the relay. */
const COMPLAIN_EVERY = 1;
/** Nonces of ping frames from here on are the shell's, for `Ponged`. */
const PINGS = 2 ** 31;
/** Only a service that forwards very late could need an older one than these. */
const MAX_ENDED = 1000;

/** What a node keeps of a peer that is there. */
class NodePeer {
  /** The state that the application knows. @type {PeerState} */
  told = "new";
  /** The path that it knows. @type {Path | null} */
  toldPath = null;
  /** When the latest `BadInput` about what comes over the relay was told. */
  complained = -Infinity;
  /** Whether data comes over the relay, as the rest of the node knows it. */
  relayed = false;
  /** The deadline that is in the node's heap. @type {number | null} */
  armed = null;
  /** How long it was in each of the states before.
      @type {Partial<Record<PeerState, number>>} */
  seconds = {};
  /** Why it is as it is. */
  reason = "in the room";
  /** What a connection said last, and its epoch. @type {[epoch: number, state: string]} */
  iceState = [0, "new"];

  /**
   * @param {Member} member
   * @param {Link} link
   * @param {Delivery} delivery
   * @param {Route} route
   * @param {number} since When the state that the application knows began.
   */
  constructor(member, link, delivery, route, since) {
    this.member = member;
    this.link = link;
    this.delivery = delivery;
    this.route = route;
    this.since = since;
  }
}

/** What waits for its time, earliest first; of the same time in the order of their ids. */
class PeerHeap {
  /** @type {[at: number, peerId: string][]} */
  #heap = [];

  /** The earliest; undefined when there is none. */
  get first() {
    return this.#heap.length ? this.#heap[0] : undefined;
  }

  /**
   * @param {number} at
   * @param {string} peerId
   */
  push(at, peerId) {
    const heap = this.#heap;
    let place = heap.push([at, peerId]) - 1;
    while (place > 0) {
      const parent = (place - 1) >> 1;
      if (!this.#isBefore(place, parent)) break;
      [heap[place], heap[parent]] = [heap[parent], heap[place]];
      place = parent;
    }
  }

  /** Take out the earliest, which must be there. */
  pop() {
    const heap = this.#heap;
    const first = heap[0];
    const last = /** @type {[number, string]} */ (heap.pop());
    if (heap.length) heap[0] = last;
    for (let place = 0; ; ) {
      let least = place;
      for (const child of [2 * place + 1, 2 * place + 2]) {
        if (child < heap.length && this.#isBefore(child, least)) least = child;
      }
      if (least === place) return first;
      [heap[place], heap[least]] = [heap[least], heap[place]];
      place = least;
    }
  }

  /**
   * @param {number} one
   * @param {number} other
   */
  #isBefore(one, other) {
    const [a, b] = [this.#heap[one], this.#heap[other]];
    return a[0] !== b[0] ? a[0] < b[0] : compareTexts(a[1], b[1]) < 0;
  }
}

/** One peer of a room. */
class Node {
  #config;
  #random;
  #incarnation;
  #mesh;
  /** @type {Map<string, NodePeer>} */
  #peers = new Map();
  // The epoch at which the link to an incarnation ended: to tell late signals of it from those of a
  // stranger, and to go on from there if it comes back, so that no epoch is used twice. With it
  // what the application has not taken of its messages, which still counts then.
  /** @type {Map<string, {epoch: number, history: History, delivery: Delivery}>} */
  #ended = new Map();
  // The links' deadlines, earliest first. Entries that no longer hold are skipped when they come
  // up, so that what happens on one link costs nothing for the others.
  #heap = new PeerHeap();
  /** @type {IceServers | null} */
  #iceServers = null;
  #reports = new Reports();
  /** Whether the signalling service forwards data, as far as it can be reached. */
  #forwards = false;

  /**
   * @param {NodeConfig} config
   * @param {object} options
   * @param {string} options.peerId
   * @param {string} options.incarnation
   * @param {() => number} options.random Gives numbers in [0, 1).
   */
  constructor(config, { peerId, incarnation, random }) {
    this.#config = config;
    this.#random = random;
    this.#incarnation = incarnation;
    this.#mesh = new Mesh(peerId, incarnation);
  }

  // --- what the shell reads; it throws for a peer that is not there ---

  /**
   * @param {string} peerId
   * @returns {NodePeer}
   */
  #peer(peerId) {
    const peer = this.#peers.get(peerId);
    if (peer === undefined) throw new Error(`${peerId} is not there`);
    return peer;
  }

  /**
   * The link to a peer.
   * @param {string} peerId
   */
  link(peerId) {
    return this.#peer(peerId).link;
  }

  /**
   * All messages to and from a peer.
   * @param {string} peerId
   */
  delivery(peerId) {
    return this.#peer(peerId).delivery;
  }

  /**
   * The state that the application knows.
   * @param {string} peerId
   */
  stateOf(peerId) {
    return this.#peer(peerId).told;
  }

  /**
   * How data flows now; null while it does not.
   * @param {string} peerId
   * @returns {Path | null}
   */
  pathOf(peerId) {
    const { route, link } = this.#peer(peerId);
    if (route.state === "relay" && link.state !== "closed") return "relay";
    return link.state === "connected" ? directPath(link) : null;
  }

  /**
   * The latest round trip on the path in seconds.
   * @param {string} peerId
   */
  rttOf(peerId) {
    const { route, link } = this.#peer(peerId);
    return route.state === "relay" ? route.rtt : link.rtt;
  }

  /**
   * How it stands with a peer.
   * @param {string} peerId
   * @param {number} now
   */
  report(peerId, now) {
    const peer = this.#peer(peerId);
    const { link, member, told } = peer;
    return {
      kind: "ConnectionReport",
      peerId,
      incarnation: member.incarnation,
      name: member.name,
      state: told,
      iceState: this.iceStateOf(peerId),
      path: this.pathOf(peerId),
      pair: link.pair,
      rtt: this.rttOf(peerId),
      reason: peer.reason,
      epoch: link.epoch,
      generation: link.generation,
      restarts: link.history.restarts,
      seconds: { ...peer.seconds, [told]: (peer.seconds[told] ?? 0) + now - peer.since },
    };
  }

  /**
   * @param {string} peerId
   * @returns {LinkReport}
   */
  #linkReport(peerId) {
    const { link, delivery, member, told, reason } = this.#peer(peerId);
    const { history } = link;
    const rtt = this.rttOf(peerId);
    return {
      kind: "LinkReport",
      peerId,
      incarnation: member.incarnation,
      state: told,
      iceState: this.iceStateOf(peerId),
      path: this.pathOf(peerId),
      // So fine that it says something, and so coarse that it is often the same again.
      rtt: rtt === null ? null : rounded(rtt, rtt >= 0.01 ? 3 : 4),
      reason: brief(reason),
      failure: brief(history.failure),
      restarts: history.restarts,
      attempts: history.attempts,
      successes: history.connections,
      failures: link.failures,
      connectTime: history.connections ? rounded(history.connectTime, 3) : null,
      fallbacks: history.fallbacks,
      messages: delivery.messagesDirect,
      bytesSent: delivery.bytesSent,
      bytesReceived: delivery.bytesReceived,
    };
  }

  /**
   * The ICE state, as W3C WebRTC names it.
   * @param {string} peerId
   * @returns {string}
   */
  iceStateOf(peerId) {
    const { link, iceState } = this.#peer(peerId);
    if (["disconnected", "failed", "closed"].includes(link.state)) return link.state;
    const [epoch, said] = iceState;
    return epoch === link.epoch ? said : "new";
  }

  /** When `tick` is wanted next. */
  nextDeadline() {
    let first = this.#heap.first;
    while (first !== undefined && this.#peers.get(first[1])?.armed !== first[0]) {
      this.#heap.pop();
      first = this.#heap.first;
    }
    return earliest(first?.[0], this.#mesh.nextDeadline(), this.#reports.nextDeadline());
  }

  // --- from the signalling service ---

  /**
   * Something came from the signalling service.
   * @param {NodeSignal} event
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  signaling(event, now) {
    switch (event.kind) {
      case "SignalIn":
        return this.#signal(event, now);
      case "Welcome": {
        this.#forwards = event.forwardWindow > 0;
        this.#reports.wanted(event.reportInterval, now);
        // First of all: whoever is dialled now is dialled with them.
        const out = event.iceServers === null ? [] : this.#serversNamed(event.iceServers, now);
        const said = event.resumed
          ? this.#mesh.resumed(now)
          : this.#mesh.welcome(event.members, event.seatTimeout, now);
        out.push(...this.#meshSaid(said, now));
        for (const peerId of [...this.#peers.keys()]) out.push(...this.#relayChanged(peerId, now));
        return out;
      }
      case "MemberJoined":
        return this.#meshSaid(this.#mesh.joined(event.member), now);
      case "MemberLeft":
        return this.#meshSaid(this.#mesh.left(event), now);
      case "MemberUpdated":
        return this.#meshSaid(this.#mesh.updated(event), now);
      case "IceServers":
        return this.#serversNamed(event, now);
      case "Notice":
        return [tell({ kind: "NoticeReceived", text: event.text })];
      case "RestartIce": {
        // One that is not there has left meanwhile.
        const peers = [...this.#peers.keys()].filter((each) => event.peerId === null || event.peerId === each);
        return this.#restartAll(peers, "the operator of the relay asks for it", now);
      }
      default:
        // `Refused`, of a signal to nobody: presence or a deadline settles it.
        return [];
    }
  }

  /**
   * The signalling service can't be reached.
   * @param {number} now
   */
  signalingLost(now) {
    this.#forwards = false;
    this.#reports.lost();
    const out = this.#meshSaid(this.#mesh.signalingLost(), now);
    for (const peerId of [...this.#peers.keys()]) out.push(...this.#relayChanged(peerId, now));
    return out;
  }

  /**
   * @param {IceServers} named
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #serversNamed(named, now) {
    const before = this.#iceServers?.servers ?? [];
    if (this.#iceServers !== null && sameServers(named.servers, before)) return [];
    let servers;
    try {
      servers = named.servers.map(iceServer);
    } catch (exc) {
      if (!(exc instanceof ConfigError)) throw exc;
      const error = new ProtocolError(exc.message, { code: "bad_ice_server", field: "$.servers" });
      return [badInput(null, error)];
    }
    this.#iceServers = named;
    // An allocation ends with the credentials that it was made with, and a path over it with it.
    // That of the other side is its own business.
    const known = new Map(named.servers.flatMap((each) => each.urls.map((url) => [url, each])));
    const ending = new Set();
    for (const each of before) {
      for (const url of each.urls) if (!sameCredentials(known.get(url), each)) ending.add(url);
    }
    const overThem = [...this.#peers.keys()].filter((peerId) => ending.has(this.link(peerId).pair?.local.server));
    return [{ kind: "UseServers", servers }, ...this.#restartAll(overThem, "new TURN credentials", now)];
  }

  /**
   * @param {SignalIn} signal
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #signal(signal, now) {
    const { sender, incarnation } = signal;
    const peer = this.#find(sender, incarnation);
    if (peer === null) {
      if (this.#ended.has(endedKey(sender, incarnation))) return [];
      const text = `a signal of incarnation ${incarnation} of ${repr(sender)}, which is not in the room`;
      return [badInput(sender, new ProtocolError(text, { code: "unknown_sender", field: "$.incarnation" }))];
    }
    if (signal.toIncarnation !== this.#incarnation) {
      return [signalOut(peer, 0, { kind: "Stale", incarnation: this.#incarnation, epoch: peer.link.epoch })];
    }
    let message;
    try {
      message = decodeLink(signal.body);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      return [badInput(sender, error)];
    }
    return this.#linkSaid(sender, peer.link.message(signal.epoch, message, now), now);
  }

  // --- from the connections ---

  /**
   * It made this description.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {MakeOffer | AcceptOffer} operation
   * @param {string} sdp
   * @param {number} now
   */
  operationDone(peerId, incarnation, epoch, operation, sdp, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    const said =
      operation.kind === "MakeOffer"
        ? link.offerMade(epoch, operation.generation, sdp, now)
        : link.answerMade(epoch, operation.generation, sdp, now);
    return this.#linkSaid(peerId, said, now);
  }

  /**
   * An operation did not succeed.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {Operation} operation
   * @param {MeshError} error
   * @param {number} now
   */
  operationFailed(peerId, incarnation, epoch, operation, error, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    return this.#linkSaid(peerId, link.operationFailed(epoch, operation, error, now), now);
  }

  /**
   * The message channel is open.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} now
   */
  connectionOpened(peerId, incarnation, epoch, now) {
    const link = this.#find(peerId, incarnation)?.link;
    return link === undefined ? [] : this.#linkSaid(peerId, link.opened(epoch, now), now);
  }

  /**
   * The connection is over.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  connectionLost(peerId, incarnation, epoch, reason, now) {
    const link = this.#find(peerId, incarnation)?.link;
    return link === undefined ? [] : this.#linkSaid(peerId, link.lost(epoch, reason, now), now);
  }

  /**
   * The connection found candidates that its description did not have.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} generation
   * @param {IceCandidate[]} candidates
   * @param {boolean} end
   * @param {number} now
   */
  localCandidates(peerId, incarnation, epoch, generation, candidates, end, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    const said = link.localCandidates(epoch, generation, candidates, { end, now });
    return this.#linkSaid(peerId, said, now);
  }

  /**
   * Data goes over this pair from now on.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} generation
   * @param {CandidatePair} pair
   * @param {number} now
   */
  pairSelected(peerId, incarnation, epoch, generation, pair, now) {
    const link = this.#find(peerId, incarnation)?.link;
    if (link === undefined) return [];
    return this.#linkSaid(peerId, link.selected(epoch, generation, pair, now), now);
  }

  /**
   * What data went over has ended; the connection waits for another generation.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {string} reason
   * @param {number} now
   */
  pathLost(peerId, incarnation, epoch, reason, now) {
    const link = this.#find(peerId, incarnation)?.link;
    return link === undefined ? [] : this.#linkSaid(peerId, link.pathLost(epoch, reason, now), now);
  }

  /**
   * Something of the other side arrived that is no frame, and was `answered` or not.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {boolean} answered
   * @param {number} now
   */
  heard(peerId, incarnation, epoch, answered, now) {
    const said = this.#find(peerId, incarnation)?.link.heard(epoch, now, { answered }) ?? [];
    return said.length ? this.#linkSaid(peerId, said, now) : [];
  }

  /**
   * The answer to a `Probe` arrived.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {number} nonce
   * @param {number} now
   */
  ponged(peerId, incarnation, epoch, nonce, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null) return [];
    const { link, route } = peer;
    if (link.rtt === null) this.#reports.changed(peerId, now);
    const said = link.pong(epoch, nonce, now);
    const out = said.length ? this.#linkSaid(peerId, said, now) : [];
    if (route.state === "relay" && epoch === link.epoch && link.state === "connected") {
      // Both had asked for the relay before either heard that the connection is back. A check that
      // was answered says that it passes both ways, which its state alone does not.
      out.push(...this.#routeSaid(peer, route.link(now, { up: true }), now));
    }
    return out;
  }

  /**
   * What the connection says of its ICE, in W3C WebRTC's words.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {string} state
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  iceState(peerId, incarnation, epoch, state, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer !== null && epoch === peer.link.epoch) {
      peer.iceState = [epoch, state];
      this.#reports.changed(peerId, now);
    }
    return [];
  }

  /**
   * A frame arrived over the connection.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} epoch
   * @param {Uint8Array} data
   * @param {number} now
   */
  frameReceived(peerId, incarnation, epoch, data, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null || epoch !== peer.link.epoch || !peer.link.alive) return [];
    const said = peer.link.heard(epoch, now);
    const out = said.length ? this.#linkSaid(peerId, said, now) : [];
    try {
      this.#frame(peer, epoch, data, now, out);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      // What follows on this connection can't be trusted to be understood.
      out.push(badInput(peerId, error));
      out.push(...this.#linkSaid(peerId, peer.link.lost(epoch, error.message, now), now));
    }
    return out;
  }

  /**
   * A frame arrived over the relay, which says who sent it.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {Uint8Array} data
   * @param {number} now
   */
  forwarded(peerId, incarnation, data, now) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null || !this.#relays(peer.link)) return [];
    /** @type {NodeOutput[]} */
    const out = [];
    try {
      this.#frame(peer, RELAY, data, now, out);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      // Nothing ends that could keep such frames from coming: they are told now and then.
      if (now - peer.complained >= COMPLAIN_EVERY) {
        peer.complained = now;
        out.push(badInput(peerId, error));
      }
      peer.delivery.detach(RELAY);
      out.push(...this.#routeSaid(peer, peer.route.fault(now), now));
      return out;
    }
    peer.route.heard(now);
    return out;
  }

  /**
   * @param {NodePeer} peer
   * @param {number} path
   * @param {Uint8Array} data
   * @param {number} now
   * @param {NodeOutput[]} out
   */
  #frame(peer, path, data, now, out) {
    const { delivery } = peer;
    const { peerId } = peer.member;
    const frame = decodeFrame(data);
    switch (frame.kind) {
      case "Parts": {
        /** @type {Received[]} */
        const messages = [];
        try {
          delivery.received(path, frame, now, messages);
        } finally {
          if (messages.length) {
            out.push({ kind: "Deliver", peerId, path: path === RELAY ? "relay" : directPath(peer.link), messages });
          }
        }
        if (delivery.due) out.push({ kind: "Ready", peerId });
        // All that can have moved here, where most that arrives passes through.
        const at = delivery.nextDeadline();
        if (at !== null && (peer.armed === null || at < peer.armed)) this.#arm(peer);
        break;
      }
      case "Resume": {
        // An answer that waits for room on a path that the other side has just left can't be sent
        // any more: it is answered here instead.
        const astray = delivery.answering && delivery.inbound !== path;
        if (!delivery.resumed(path, frame)) break;
        const [refused, numbers] = delivery.refused();
        if (refused.length) out.push(undeliveredTo(peer, refused));
        if (numbers.length) out.push({ kind: "RequestsRefused", peerId, numbers });
        const said = peer.route.asked(now, { relay: path === RELAY, ask: frame.ask || astray });
        out.push(...this.#routeSaid(peer, said, now));
        out.push({ kind: "Ready", peerId });
        break;
      }
      case "Ping":
        delivery.received(path, frame, now, []);
        if (frame.nonce) delivery.pong(frame.nonce);
        if (path !== RELAY) peer.link.spoke(now);
        out.push({ kind: "Ready", peerId });
        break;
      case "Pong":
        if (frame.nonce >= PINGS) {
          out.push({ kind: "Ponged", peerId, nonce: frame.nonce - PINGS });
        } else if (path === RELAY) {
          if (peer.route.rtt === null) this.#reports.changed(peerId, now);
          peer.route.ponged(frame.nonce, now);
        }
        break;
      case "Bye":
        out.push(...this.#meshSaid(this.#mesh.departed(peerId, peer.member.incarnation), now));
        break;
      default:
        delivery.received(path, frame, now, []);
        out.push({ kind: "Ready", peerId });
    }
  }

  /**
   * Send a ping frame behind what was sent before, for `Ponged`; none when there is no path. It
   * throws when the peer is not there.
   * @param {string} peerId
   * @param {number} nonce
   * @returns {NodeOutput[]}
   */
  ping(peerId, nonce) {
    const path = this.#peer(peerId).delivery.out;
    if (path === null) return [];
    return [sendFrame(peerId, path, encodeFrame({ kind: "Ping", nonce: PINGS + nonce }))];
  }

  /**
   * The shell sent data over the current connection. It throws when the peer is not there.
   * @param {string} peerId
   * @param {number} now
   */
  spoke(peerId, now) {
    this.#peer(peerId).link.spoke(now);
  }

  /**
   * The application took a message of this channel.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {number} channel
   * @param {number} charge
   * @returns {NodeOutput[]}
   */
  taken(peerId, incarnation, channel, charge) {
    const peer = this.#find(peerId, incarnation);
    if (peer === null) {
      this.#ended.get(endedKey(peerId, incarnation))?.delivery.taken(channel, charge);
      return [];
    }
    peer.delivery.taken(channel, charge);
    return peer.delivery.due ? [{ kind: "Ready", peerId }] : [];
  }

  // --- what the program and its machine say ---

  /**
   * The addresses of this machine changed: every path may be gone, or a better one there.
   * @param {number} now
   */
  addressesChanged(now) {
    return this.#restartAll([...this.#peers.keys()], "the local addresses changed", now);
  }

  /**
   * An ICE restart with a peer, or with all, where there is a connection. It throws when the peer
   * is not there.
   * @param {string | null} peerId
   * @param {number} now
   */
  forceRestart(peerId, now) {
    const peers = peerId === null ? [...this.#peers.keys()] : [peerId];
    return this.#restartAll(peers, "asked for", now);
  }

  /**
   * @param {string[]} peers
   * @param {string} reason
   * @param {number} now
   */
  #restartAll(peers, reason, now) {
    return peers.flatMap((peerId) => {
      const said = this.#peer(peerId).link.restart(reason, now);
      return this.#linkSaid(peerId, said, now);
    });
  }

  // --- time and the end ---

  /**
   * Time has passed.
   * @param {number} now
   */
  tick(now) {
    const out = this.#meshSaid(this.#mesh.tick(now), now);
    for (let first = this.#heap.first; first !== undefined && first[0] <= now; first = this.#heap.first) {
      const [at, peerId] = this.#heap.pop();
      const peer = this.#peers.get(peerId);
      if (peer === undefined || peer.armed !== at) continue;
      peer.armed = null;
      peer.delivery.tick(now);
      if (peer.delivery.due) out.push({ kind: "Ready", peerId });
      out.push(...this.#routeSaid(peer, peer.route.tick(now), now));
      if (this.#peers.has(peerId)) out.push(...this.#linkSaid(peerId, peer.link.tick(now), now));
    }
    const links = this.#reports.due(now, this.#peers, (peerId) => this.#linkReport(peerId));
    if (links.length) out.push({ kind: "ReportLinks", links });
    return out;
  }

  /**
   * Every link ends. The peers are told that we leave, unless `leaves` is false: who was replaced
   * or removed does not, and the signalling service says why it is gone.
   * @param {number} now
   * @param {{leaves?: boolean}} [options]
   */
  close(now, { leaves = true } = {}) {
    const bye = encodeFrame({ kind: "Bye" });
    /** @type {NodeOutput[]} */
    const out = [];
    for (const [peerId, { delivery, link, route }] of this.#peers) {
      const relayed = route.state === "relay";
      if (!link.alive && !relayed) continue;
      const path = relayed ? RELAY : link.epoch;
      // Or what has arrived, and waits for its acknowledgement, is taken for lost.
      const ack = delivery.lastAck();
      if (ack !== null) out.push(sendFrame(peerId, path, ack));
      if (leaves) out.push(sendFrame(peerId, path, bye));
    }
    out.push(...this.#meshSaid(this.#mesh.close(), now));
    this.#reports.lost();
    return out;
  }

  // --- putting outputs together ---

  /**
   * @param {string} peerId
   * @param {string} incarnation
   */
  #find(peerId, incarnation) {
    const peer = this.#peers.get(peerId);
    return peer === undefined || peer.member.incarnation !== incarnation ? null : peer;
  }

  /**
   * @param {MeshOutput[]} outputs
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #meshSaid(outputs, now) {
    /** @type {NodeOutput[]} */
    const out = [];
    for (const output of outputs) {
      switch (output.kind) {
        case "OpenLink": {
          const { member } = output;
          const { peerId, incarnation } = member;
          const key = endedKey(peerId, incarnation);
          const ended = this.#ended.get(key);
          this.#ended.delete(key);
          const link = new Link(this.#config, {
            dials: output.dials,
            incarnation: this.#incarnation,
            random: this.#random,
            epoch: ended?.epoch ?? 0,
            history: ended?.history ?? null,
          });
          const delivery = ended?.delivery ?? new Delivery(this.#config);
          const peer = new NodePeer(member, link, delivery, new Route(this.#config), now);
          this.#peers.set(peerId, peer);
          out.push(tell({ ...member, kind: "PeerJoined" }));
          peer.route.start(now);
          out.push(...this.#linkSaid(peerId, link.start(now), now));
          out.push(...this.#relayChanged(peerId, now));
          break;
        }
        case "CloseLink":
          out.push(...this.#closeLink(output.peerId, output.reason, now));
          break;
        case "Renamed":
          this.#peer(output.member.peerId).member = output.member;
          out.push(tell({ ...output.member, kind: "PeerUpdated" }));
          break;
        case "Reachable": {
          const { peerId, reachable } = output;
          const { link } = this.#peer(peerId);
          if (reachable) this.#reports.unknown(peerId, now);
          out.push(...this.#linkSaid(peerId, link.setReachable(reachable, now), now));
          out.push(...this.#relayChanged(peerId, now));
          break;
        }
      }
    }
    return out;
  }

  /**
   * @param {string} peerId
   * @param {string} reason
   * @param {number} now
   */
  #closeLink(peerId, reason, now) {
    /** @type {NodeOutput[]} */
    const out = [];
    const peer = this.#peer(peerId);
    const { delivery, link } = peer;
    const { incarnation, name } = peer.member;
    const lost = delivery.giveUp();
    if (lost.length) out.push(undeliveredTo(peer, lost));
    out.push(...this.#linkSaid(peerId, link.close(reason, now), now));
    this.#reports.ended(this.#linkReport(peerId), now);
    this.#peers.delete(peerId);
    delivery.detach(RELAY);
    this.#ended.set(endedKey(peerId, incarnation), { epoch: link.epoch, history: link.history, delivery });
    if (this.#ended.size > MAX_ENDED) {
      for (const oldest of this.#ended.keys()) {
        this.#ended.delete(oldest);
        break;
      }
    }
    if (delivery.half) this.#boundEnded();
    out.push(tell({ kind: "PeerLeft", peerId, incarnation, name, reason }));
    return out;
  }

  /**
   * Forget the oldest of those that ended in the middle of a message, when all that is kept of such
   * messages is too much. The latest is kept in any case.
   */
  #boundEnded() {
    /** @type {[key: string, half: number][]} */
    const halves = [];
    let held = 0;
    for (const [key, { delivery }] of this.#ended) {
      const { half } = delivery;
      if (half) halves.push([key, half]);
      held += half;
    }
    for (const [key, half] of halves.slice(0, -1)) {
      if (held <= this.#config.receiveWindow) return;
      this.#ended.delete(key);
      held -= half;
    }
  }

  /**
   * @param {string} peerId
   * @param {number} now
   */
  #relayChanged(peerId, now) {
    const peer = this.#peer(peerId);
    const up = this.#relays(peer.link);
    if (!up) peer.delivery.detach(RELAY);
    return this.#routeSaid(peer, peer.route.relay(now, { up }), now);
  }

  /**
   * Whether the relay is a path to this peer.
   * @param {Link} link
   */
  #relays(link) {
    return this.#forwards && link.reachable && this.#config.relayAfter !== null;
  }

  /**
   * @param {NodePeer} peer
   * @param {RouteOutput[]} outputs
   * @param {number} now
   */
  #routeSaid(peer, outputs, now) {
    /** @type {NodeOutput[]} */
    const out = [];
    const { delivery, link, route } = peer;
    const { peerId } = peer.member;
    for (const output of outputs) {
      switch (output.kind) {
        case "Ping":
          out.push(sendFrame(peerId, RELAY, encodeFrame({ kind: "Ping", nonce: output.nonce })));
          break;
        case "Attach": {
          const path = output.relay ? RELAY : link.epoch;
          // Where a connection was only silent for a while, nothing of it is lost.
          if (!output.relay && delivery.inbound === path) break;
          if (output.ask) {
            out.push(sendFrame(peerId, path, delivery.attach(path, { ask: true })));
          } else {
            delivery.answer(path);
            out.push({ kind: "Ready", peerId });
          }
          break;
        }
      }
    }
    const relayed = route.state === "relay";
    if (relayed !== peer.relayed) {
      peer.relayed = link.carried = relayed;
      if (relayed) link.history.fallbacks++;
      else if (route.state !== "direct") link.history.failure = route.reason;
      out.push(...this.#tellState(peer, route.reason, now));
      this.#reports.changed(peerId, now);
    }
    this.#arm(peer);
    return out;
  }

  /**
   * See to it that `tick` comes in time for this peer.
   * @param {NodePeer} peer
   */
  #arm(peer) {
    const { delivery, link, route } = peer;
    const deadline = earliest(link.nextDeadline(), route.nextDeadline(), delivery.nextDeadline());
    if (deadline !== null && (peer.armed === null || deadline < peer.armed)) {
      peer.armed = deadline;
      this.#heap.push(deadline, peer.member.peerId);
    }
  }

  /**
   * @param {string} peerId
   * @param {LinkOutput[]} outputs
   * @param {number} now
   */
  #linkSaid(peerId, outputs, now) {
    const peer = this.#peer(peerId);
    const { incarnation } = peer.member;
    /** @type {NodeOutput[]} */
    const out = [];
    for (const output of outputs) {
      switch (output.kind) {
        case "SendSignal":
          out.push(signalOut(peer, output.epoch, output.body));
          break;
        case "Operate": {
          const { epoch, operation } = output;
          if (operation.kind === "CloseConnection") peer.delivery.detach(epoch);
          out.push({ kind: "Run", peerId, incarnation, epoch, operation });
          break;
        }
        case "Ping":
          out.push({ kind: "Probe", peerId, epoch: output.epoch, nonce: output.nonce });
          break;
        case "PairSelected":
          peer.reason = output.reason;
          out.push(tell(this.report(peerId, now)));
          break;
        case "Refuse":
          out.push(badInput(peerId, output.error));
          break;
        case "StateChanged":
          out.push(...this.#stateChanged(peer, output, now));
          break;
      }
      if (output.kind !== "Ping") this.#reports.changed(peerId, now);
    }
    this.#arm(peer);
    return out;
  }

  /**
   * @param {NodePeer} peer
   * @param {{previous: string, state: string, reason: string}} change
   * @param {number} now
   */
  #stateChanged(peer, change, now) {
    const { link, route } = peer;
    const up = link.state === "connected";
    const said = up || change.previous === "connected" ? route.link(now, { up }) : [];
    // Over the relay `connected` goes on, so the path is told even where the state is not.
    const out = this.#tellState(peer, change.reason, now);
    out.push(...this.#routeSaid(peer, said, now));
    if (change.state !== "closed") {
      out.push(...this.#meshSaid(this.#mesh.linkAlive(peer.member.peerId, link.alive), now));
    }
    return out;
  }

  /**
   * @param {NodePeer} peer
   * @param {string} reason
   * @param {number} now
   * @returns {NodeOutput[]}
   */
  #tellState(peer, reason, now) {
    const { peerId, incarnation, name } = peer.member;
    const state = peerState(peer);
    const path = this.pathOf(peerId);
    const previous = peer.told;
    if (state === previous && path === peer.toldPath) return [];
    peer.told = state;
    peer.toldPath = path;
    peer.reason = reason;
    /** @type {NodeOutput[]} */
    const out = [];
    if (state !== previous) {
      peer.seconds[previous] = (peer.seconds[previous] ?? 0) + now - peer.since;
      peer.since = now;
      const { epoch } = peer.link;
      out.push(
        tell({ kind: "PeerStateChanged", peerId, incarnation, name, previous, state, path, reason, epoch }),
      );
    }
    out.push(tell(this.report(peerId, now)));
    return out;
  }
}

/**
 * The state as the application is told it.
 * @param {NodePeer} peer
 * @returns {PeerState}
 */
function peerState({ link, route, told }) {
  if (route.state === "relay" && link.state !== "closed") return "connected";
  const state = link.peerState;
  if ((state === "new" || state === "connecting") && (told === "connected" || told === "disconnected")) {
    return "disconnected"; // it was connected, over the relay
  }
  if (state === "failed" && told === "connected") return "disconnected"; // the attempts failed before; none has since
  return state;
}

/**
 * How data flows over a connection that is up.
 * @param {Link} link
 * @returns {Path}
 */
function directPath({ pair }) {
  return pair === null ? "direct" : pathOf(pair);
}

/**
 * @param {NodePeer} peer
 * @param {number} epoch
 * @param {LinkMessage} body
 * @returns {NodeOutput}
 */
function signalOut({ member }, epoch, body) {
  const { peerId: to, incarnation: toIncarnation } = member;
  return { kind: "Signal", message: { kind: "SignalOut", to, toIncarnation, epoch, body: encode(body) } };
}

/**
 * @param {NodePeer} peer
 * @param {UndeliveredMessage[]} messages
 */
function undeliveredTo({ member: { peerId, incarnation } }, messages) {
  return tell({ kind: "MessagesUndelivered", peerId, incarnation, messages });
}

/**
 * @param {string | null} peerId
 * @param {MeshError} error
 */
function badInput(peerId, error) {
  return tell({ kind: "BadInput", peerId, error });
}

/**
 * @param {object} event
 * @returns {NodeOutput}
 */
function tell(event) {
  return { kind: "Tell", event };
}

/**
 * @param {string} peerId
 * @param {number} path
 * @param {Uint8Array} data
 * @returns {NodeOutput}
 */
function sendFrame(peerId, path, data) {
  return { kind: "SendFrame", peerId, path, data };
}

/**
 * As the shell is given it. Throws `ConfigError`.
 * @param {IceServerInfo} info
 * @returns {IceServer}
 */
function iceServer({ urls, username, credential }) {
  const turn = urls.find((url) => url.startsWith("turn"));
  if (turn !== undefined && (username === null || credential === null)) {
    throw new ConfigError(`IceServer.username and IceServer.credential must be given for ${repr(turn)}`);
  }
  return { kind: "IceServer", urls, username, credential };
}

/**
 * @param {IceServerInfo | undefined} one
 * @param {IceServerInfo} other
 */
function sameCredentials(one, other) {
  return one?.username === other.username && one?.credential === other.credential;
}

/**
 * @param {readonly IceServerInfo[]} some
 * @param {readonly IceServerInfo[]} others
 */
function sameServers(some, others) {
  const same = (/** @type {IceServerInfo} */ one, /** @type {IceServerInfo} */ other) =>
    sameCredentials(one, other) && one.urls.length === other.urls.length && one.urls.every((url, i) => url === other.urls[i]);
  return some.length === others.length && some.every((one, i) => same(one, others[i]));
}

/**
 * The name of an incarnation that is gone. There is no space in an incarnation.
 * @param {string} peerId
 * @param {string} incarnation
 */
function endedKey(peerId, incarnation) {
  return `${incarnation} ${peerId}`;
}

/**
 * @param {number} seconds
 * @param {number} digits
 */
function rounded(seconds, digits) {
  return Number(seconds.toFixed(digits));
}

// --- shell.js ------------------------------------------------------------------------------------

// The shell around a Node: feeds it, does what it returns, keeps one timer. The same as meshpeer's
// shell.py. What it takes of a page (connections, sockets, the page's own events) comes in from
// outside or is looked up when it is used, so that it runs without a page as well.

/** `new → joining → joined ⇄ reconnecting → closed`: how it stands with the relay.
    @typedef {"new" | "joining" | "joined" | "reconnecting" | "closed"} MeshState */

/**
 * What came of asking a STUN or TURN server. `took` is in seconds.
 * @typedef {{kind: "IceServerReport", url: string, outcome: string, detail: string,
 *   address: string | null, took: number}} IceServerReport
 */

/**
 * One RTCPeerConnection with a message channel.
 * @typedef {object} ShellConnection
 * @property {(generation: number) => Promise<string>} createOffer
 * @property {(generation: number, sdp: string) => Promise<string>} acceptOffer
 * @property {(generation: number, sdp: string) => Promise<void>} acceptAnswer
 * @property {(generation: number, candidates: IceCandidate[], end: boolean) => Promise<void>} addCandidates
 * @property {(nonce: number) => void} ping
 * @property {(data: Uint8Array) => void} sendFrame
 * @property {number} bufferedAmount
 * @property {(label: string, options: ChannelOptions) => RawChannel} openChannel
 * @property {() => Promise<any>} stats
 * @property {() => Promise<void> | void} close
 */

/**
 * What carries signals.
 * @typedef {object} ShellTransport
 * @property {string} url
 * @property {string} state
 * @property {Error | null} lastFailure
 * @property {() => number | null} retryIn  seconds to the next try; null while none is waited for
 * @property {(join: Join, signal: AbortSignal | null) => Promise<Welcome>} open
 * @property {(signal: SignalOut) => void} send
 * @property {(name: string | null, metadata: Metadata | null) => void} update
 * @property {(to: string) => number} forwardRoom
 * @property {(to: string, toIncarnation: string, data: Uint8Array) => void} forward
 * @property {(links: readonly LinkReport[]) => void} report
 * @property {(options: {networkChanged: boolean}) => void} doubt
 * @property {() => Promise<void>} close
 */

/**
 * What a shell is made of.
 * @typedef {object} ShellParts
 * @property {(told: {onEvent: (event: SignalingEvent) => void, onEnd: (error: Error) => void}) => ShellTransport} transport
 * @property {(observer: ShellObserver) => ShellConnection} connection
 * @property {(options: {chunk: number, onEvent: (event: FileOffered | FileWithdrawn) => void}) => Files} files
 * @property {(() => Promise<Seat>) | null} seat  asks for the seat of an earlier page
 * @property {boolean} isIdRandom  nobody asked for the peer id that the join has
 * @property {() => string} newPeerId
 * @property {EventTarget} target  whose listeners are told what happens
 * @property {number} lowBuffer  bytes in the buffer of the message channel at which the observer's
 *   bufferLow is called
 * @property {() => number} [random]
 */

/** ICE servers whose latest outcome is kept; the relay may name others each time. */
const MAX_SERVER_REPORTS = 100;
/** Bytes that a frame of messages may have: what follows waits for it on the path. */
const FRAME_SIZE = 32 * 1024;
/** Bytes that a loop of `Peer.send` gets accepted before it lets others have their turn. */
const SEND_BURST = 64 * 1024;
/** Seconds between two `BadInput` events about files and channels of a peer. */
const SHELL_COMPLAINS_EVERY = 1;
/** Plain data channels that one peer may have open. */
const MAX_PLAIN_CHANNELS = 256;
/** What happened last, for the diagnostics. */
const LATEST_EVENTS = 200;

/** The operations on one peer's connections, which run one after another. */
class Lane {
  /** @type {Extract<NodeOutput, {kind: "Run"}>[]} */
  queue = [];
  /** @type {ShellConnection | null} */
  connection = null;
  /** Incarnation and epoch of the connection. */
  incarnation = "";
  epoch = 0;
  /** Works on the queue. @type {Promise<void> | null} */
  worker = null;
  /** Ends the operation that runs early, as its connection is to be closed. @type {(() => void) | null} */
  endEarly = null;

  /** @param {{incarnation: string, epoch: number}} run */
  isOf({ incarnation, epoch }) {
    return this.connection !== null && this.incarnation === incarnation && this.epoch === epoch;
  }
}

const GIVEN_UP = Symbol("given up");

/** Brings what one connection tells to the shell, with the connection's name on it. */
class ShellObserver {
  #shell;
  #peerId;
  #incarnation;
  #epoch;

  /**
   * @param {Shell} shell
   * @param {{peerId: string, incarnation: string, epoch: number}} run
   */
  constructor(shell, { peerId, incarnation, epoch }) {
    this.#shell = shell;
    this.#peerId = peerId;
    this.#incarnation = incarnation;
    this.#epoch = epoch;
  }

  /** @returns {[peerId: string, incarnation: string, epoch: number]} */
  get #name() {
    return [this.#peerId, this.#incarnation, this.#epoch];
  }

  /** The message channel is open. */
  connectionOpened() {
    this.#shell.feed((node, now) => node.connectionOpened(...this.#name, now));
  }

  /**
   * The connection is over, without `close` having been called.
   * @param {string} reason
   */
  connectionLost(reason) {
    this.#shell.feed((node, now) => node.connectionLost(...this.#name, reason, now));
  }

  /** @param {Uint8Array} data */
  frameReceived(data) {
    this.#shell.feed((node, now) => node.frameReceived(this.#peerId, this.#incarnation, this.#epoch, data, now));
  }

  /** The message channel's buffer has fallen to the low mark. */
  bufferLow() {
    this.#shell.roomFor(this.#peerId);
  }

  /**
   * The other side opened a plain data channel.
   * @param {RawChannel} channel
   */
  channelOpened(channel) {
    this.#shell.channelOpened(this.#peerId, this.#incarnation, channel);
  }

  /** @param {string} state `gathering`, `checking` or `connected` */
  iceStateChanged(state) {
    this.#shell.feed((node, now) => node.iceState(...this.#name, state, now));
  }

  /** The STUN and TURN servers to ask, read when a generation begins to gather. */
  iceServers() {
    return this.#shell.iceServers;
  }

  /** Which candidates may be used. */
  get iceTransportPolicy() {
    return this.#shell.config.iceTransportPolicy;
  }

  /**
   * Local candidates that the description of this generation did not have.
   * @param {number} generation
   * @param {IceCandidate[]} candidates
   * @param {boolean} end these are the last
   */
  candidatesFound(generation, candidates, end) {
    this.#shell.feed((node, now) => node.localCandidates(...this.#name, generation, candidates, end, now));
  }

  /** @param {IceServerReport} report */
  serverReported(report) {
    this.#shell.serverReported(report);
  }

  /**
   * Data goes over this pair from now on.
   * @param {number} generation
   * @param {CandidatePair} pair
   */
  pairSelected(generation, pair) {
    this.#shell.feed((node, now) => node.pairSelected(...this.#name, generation, pair, now));
  }

  /**
   * Something of the other side arrived; `answered`: it shows that the other side hears of us as well.
   * @param {boolean} answered
   */
  heard(answered) {
    this.#shell.feed((node, now) => node.heard(...this.#name, answered, now));
  }

  /**
   * The answer to `ping` arrived.
   * @param {number} nonce
   */
  ponged(nonce) {
    this.#shell.feed((node, now) => node.ponged(...this.#name, nonce, now));
  }

  /**
   * What the selected pair goes over has ended; the connection waits for another generation.
   * @param {string} reason
   */
  pathLost(reason) {
    this.#shell.feed((node, now) => node.pathLost(...this.#name, reason, now));
  }
}

/** Everything of a `PeerManager` but its public face. @implements {PeerHost} */
class Shell {
  /** @type {MeshState} */
  state = "new";
  /** @type {Map<string, Peer>} */
  peers = new Map();
  /** What ended it, when it was not `close`. @type {Error | null} */
  error = null;
  /** The secret that lets a later page take over this peer id. @type {string | null} */
  token;
  /** Those of the configuration, and those that the relay named last. @type {readonly IceServer[]} */
  iceServers;
  /** What came of asking each ICE server the last time, by its URL. @type {Map<string, IceServerReport>} */
  serverReports = new Map();
  /** Rings when a peer came, went or changed its state, and at the end. */
  bell = new Bell();
  /** What happened last, and when. @type {{at: string, event: object}[]} */
  latest = [];
  /** @type {Files} */
  files;
  config;
  join;
  #parts;
  /** @type {Node | null} */
  #node = null;
  #transport;
  /** What came while the welcome was on its way here. @type {SignalingEvent[]} */
  #early = [];
  /** @type {Map<string, PeerRecord>} */
  #records = new Map();
  /** @type {Map<string, Lane>} */
  #lanes = new Map();
  #turns = new Turns();
  #alarm = new Alarm(() => this.now(), this.#turns, () => this.feed((node, now) => node.tick(now)));
  #inbox;
  #announcer;
  /** @type {Seat | null} */
  #seat = null;
  #requests = 0;
  /** Peers that something was just sent to, and whether there is more since. @type {Map<string, boolean>} */
  #corked = new Map();
  /** In the room: not before its welcome, nor when it is torn down. */
  #isLive = false;
  /** It is closed, or is to be. */
  #isStopping = false;
  #opening = new AbortController();
  /** @type {Promise<unknown> | null} */
  #starting = null;
  /** @type {Promise<void> | null} */
  #closing = null;
  /** Aborted when whoever closes does not want to wait for what was sent to arrive. */
  #hurry = new AbortController();
  #ignorePage = () => {};
  /** The listeners to messages: ends it. @type {(() => void) | null} */
  #unlisten = null;
  #signaling = { since: Date.now(), reason: "not started" };
  /** The name that the relay gives us, whatever we say. @type {string | null} */
  #givenName = null;

  /**
   * @param {Join} join
   * @param {MeshConfig} config
   * @param {ShellParts} parts
   */
  constructor(join, config, parts) {
    this.join = join;
    this.config = config;
    this.token = join.token;
    this.iceServers = config.iceServers;
    this.#parts = parts;
    this.#transport = this.#newTransport();
    this.#announcer = new Announcer(config.maxPendingEvents, parts.target);
    this.#inbox = new Inbox(
      config.receiveWindow,
      ({ peer, received: { channel, request }, path, at }, data) =>
        new Message(this, { sender: peer, data, channel, path, receivedAt: at, request }),
      (peer, received) => this.#taken(peer, received),
    );
    this.files = parts.files({
      chunk: Math.min(FILE_CHUNK, config.maxMessageSize),
      onEvent: (event) => this.#tell(event),
    });
  }

  #newTransport() {
    return this.#parts.transport({
      onEvent: (event) => this.#signaled(event),
      onEnd: (error) => this.#fail(error),
    });
  }

  // --- life ---

  /**
   * Enter the room. See `PeerManager.start`.
   * @param {AbortSignal | null} signal
   */
  async start(signal) {
    if (this.state !== "new") {
      throw new MeshClosed(`a PeerManager starts once; this one is ${this.state}`, { reason: this.state });
    }
    this.state = "joining";
    const starting = this.#enter(signal);
    this.#starting = starting.catch(() => {});
    return starting;
  }

  /** @param {AbortSignal | null} signal */
  async #enter(signal) {
    const abort = () => this.#opening.abort(signal?.reason);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
    /** @type {Welcome} */
    let welcome;
    try {
      welcome = await this.#openInTime();
      if (this.#isStopping) throw this.closedError();
    } catch (error) {
      if (error instanceof MeshError && !this.#isStopping) this.error = error;
      await this.#transport.close().catch(report);
      this.#leaveSeat(error);
      this.#ended("not started");
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
    this.#node = new Node(this.config, {
      peerId: welcome.peerId,
      incarnation: this.join.incarnation,
      random: this.#parts.random ?? Math.random,
    });
    this.#isLive = true;
    this.#ignorePage = this.#watchPage();
    for (const event of [welcome, ...this.#early.splice(0)]) this.#signaled(event);
    if (this.#isStopping) {
      await this.close();
      throw this.closedError();
    }
  }

  /** @returns {Promise<Welcome>} */
  #openInTime() {
    const { joinTimeout } = this.config;
    const late = () => {
      const why = this.#transport.lastFailure;
      if (why instanceof RefusedError) return why;
      return new SignalingUnavailable(
        `could not enter room ${repr(this.join.room)} within ${joinTimeout} s: ${why?.message ?? "no answer"}`,
      );
    };
    return scoped({ timeout: joinTimeout, signal: this.#opening.signal, late }, (signal) =>
      this.#openSeat(/** @type {AbortSignal} */ (signal)),
    );
  }

  /** @param {AbortSignal} signal */
  async #openSeat(signal) {
    const { seat, isIdRandom, newPeerId } = this.#parts;
    const open = () => abortable(this.#transport.open(this.join, signal), signal);
    if (seat === null) return open();
    const take = async () => {
      // Waited for when we are aborted as well, or nobody would put it down. It takes no time, or little.
      this.#seat = await seat();
      signal.throwIfAborted();
      return this.#seat;
    };
    const { peerId, resumeToken, release } = await take();
    this.join = { ...this.join, peerId: peerId ?? this.join.peerId, token: resumeToken };
    try {
      return await open();
    } catch (error) {
      // What this tab had may be somebody else's by now. Who asked for an id gets that or none.
      if (signal.aborted || !isSeatRefused(error) || !isIdRandom || resumeToken === null) throw error;
      release();
      await take();
      await this.#transport.close();
      this.#transport = this.#newTransport();
      this.join = { ...this.join, peerId: newPeerId(), token: null };
      return open();
    }
  }

  /**
   * Leave the room. See `PeerManager.close`.
   * @param {AbortSignal | null} [signal]
   */
  async close(signal = null) {
    const hurry = () => this.#hurry.abort();
    if (signal?.aborted) hurry();
    else signal?.addEventListener("abort", hurry, { once: true });
    this.#closing ??= this.#close();
    try {
      await this.#closing;
    } finally {
      signal?.removeEventListener("abort", hurry);
    }
    signal?.throwIfAborted();
  }

  async #close() {
    this.#isStopping = true;
    if (this.state === "new") {
      this.state = "closed";
      await this.#transport.close();
      this.#ended("closed");
    }
    if (!this.#isLive) {
      const closed = new MeshClosed("it was closed before it had entered the room", { reason: "closing" });
      this.#opening.abort(this.error ?? closed);
      await this.#starting;
      return;
    }
    for (const record of this.#records.values()) record.bell.ring();
    this.bell.ring();
    await null; // what is being done now is done first
    try {
      if (this.error === null) await this.#confirmAll();
    } catch (error) {
      report(error);
    }
    await this.#tearDown();
  }

  async #tearDown() {
    this.#isLive = false;
    this.#ignorePage();
    const { error } = this;
    const reason = error === null ? "closed" : error instanceof ClosedError ? error.reason : "failed";
    // Before the peers go: who receives a file is told of our end, not of theirs.
    this.files.end(error);
    const leaves = !(error instanceof IdentityReplaced || error instanceof Removed);
    try {
      this.do(this.node.close(this.now(), { leaves }));
    } catch (fault) {
      report(fault);
    }
    const lanes = [...this.#lanes.values()];
    for (const lane of lanes) lane.endEarly?.();
    const ends = [this.#transport.close(), this.files.close(), ...lanes.map((lane) => lane.worker)];
    for (const end of await Promise.allSettled(ends)) if (end.status === "rejected") report(end.reason);
    for (const { connection } of lanes) if (connection !== null) await this.#closeConnection(connection);
    this.#leaveSeat(error);
    this.#ended(reason);
  }

  /**
   * Who comes after us in this tab may be the same peer again, unless the id is somebody else's.
   * @param {unknown} error
   */
  #leaveSeat(error) {
    const isLost = isSeatRefused(error) || error instanceof IdentityReplaced || error instanceof Removed;
    if (isLost) this.#seat?.release();
    else this.#seat?.putDown();
  }

  /** @param {string} reason */
  #ended(reason) {
    this.state = "closed";
    this.#isStopping = true;
    this.#alarm.set(null);
    this.#tell({ kind: "Closed", reason, error: this.error });
    this.#inbox.end(this.error);
    this.#announcer.end();
    this.bell.ring();
  }

  /**
   * The relay ended us, or the way to it did.
   * @param {Error} error
   */
  #fail(error) {
    if (this.#isStopping) return;
    if (!(error instanceof MeshError)) {
      this.#crash(error);
      return;
    }
    this.error = error;
    if (error instanceof IdentityReplaced) this.#tell({ kind: "Replaced", peerId: this.join.peerId });
    void this.close();
  }

  /**
   * A fault of the code here: reported, and all is closed.
   * @param {unknown} error
   */
  #crash(error) {
    report(error);
    if (this.#isStopping) return;
    this.error = new MeshClosed(`this PeerManager failed: ${error}`, { reason: "failed" });
    void this.close();
  }

  /** What a call on a closed manager throws. */
  closedError() {
    const { error } = this;
    if (error instanceof ClosedError) {
      return new /** @type {typeof ClosedError} */ (error.constructor)(error.message, { reason: error.reason });
    }
    const state = this.#isStopping && this.state !== "closed" ? "closing" : this.state;
    const why = error === null ? "" : ` (${error.message})`;
    return new MeshClosed(`this PeerManager is ${state}${why}`, { reason: state });
  }

  /** Throws `MeshClosed` when it is not started, or is closed. */
  checkRunning() {
    if (this.state === "new" || this.state === "closed" || this.#isStopping) throw this.closedError();
  }

  // --- signalling ---

  /** @param {SignalingEvent} event */
  #signaled(event) {
    if (this.#node === null) {
      this.#early.push(event);
      return;
    }
    const { peerId } = this.join;
    switch (event.kind) {
      case "SignalingLost": {
        const { reason, retryIn } = event;
        this.#signalingIs("reconnecting", reason, retryIn);
        this.feed((node, now) => node.signalingLost(now));
        break;
      }
      case "Welcome":
        this.token = event.token;
        this.join = { ...this.join, peerId: event.peerId };
        this.#givenName = event.name;
        this.#seat?.keep(event.token, event.peerId);
        this.#signalingIs("joined", event.resumed ? "resumed" : "joined", null);
        this.#tell({
          kind: "Joined",
          peerId: event.peerId,
          room: event.room,
          incarnation: event.incarnation,
          resumed: event.resumed,
        });
        this.feed((node, now) => node.signaling(event, now));
        break;
      case "FrameIn":
        this.feed((node, now) => node.forwarded(event.sender, event.incarnation, event.data, now));
        break;
      case "ForwardRoom":
        this.roomFor(event.peerId);
        break;
      default:
        this.feed((node, now) => node.signaling(event, now));
    }
  }

  /**
   * @param {"joined" | "reconnecting"} state
   * @param {string} reason
   * @param {number | null} retryIn
   */
  #signalingIs(state, reason, retryIn) {
    if (!this.#isStopping) this.state = state;
    this.#signaling = { since: Date.now(), reason };
    this.#tell({ kind: "SignalingChanged", state, reason, retryIn });
  }

  /** Our display name, as the others see it. */
  get name() {
    return this.#givenName ?? this.join.name;
  }

  /** How it stands with the relay. */
  signalingStatus() {
    const { since, reason } = this.#signaling;
    const { url, state, lastFailure } = this.#transport;
    return {
      url,
      room: this.join.room,
      peerId: this.join.peerId,
      incarnation: this.join.incarnation,
      state: this.state,
      transport: state,
      reason,
      since: new Date(since).toISOString(),
      // The loss is told once; the tries go on, each with a wait of its own.
      retryIn: this.state === "reconnecting" ? this.#transport.retryIn() : null,
      lastFailure: lastFailure?.message ?? null,
    };
  }

  /**
   * Tell the room a new name or metadata.
   * @param {string | null} name
   * @param {Metadata | null} metadata
   */
  update(name, metadata) {
    this.checkRunning();
    // Before the seat is asked for there is nobody to tell: it is asked for under the new name.
    if (this.#transport.state !== "new") this.#transport.update(name, metadata);
    this.join = { ...this.join, name: name ?? this.join.name, metadata: metadata ?? this.join.metadata };
  }

  // --- the page ---

  /** Look at what the page's own events say of the network. Returns what ends it. */
  #watchPage() {
    const looking = new AbortController();
    const { signal } = looking;
    const networkChanged = () => this.#guard(() => this.addressesChanged());
    const isBack = () => {
      this.#guard(() => {
        this.#transport.doubt({ networkChanged: false });
        for (const { id } of this.peers.values()) this.do(this.node.ping(id, ++this.#recordOf(id).pingsSent));
      });
      // Timers may have been held back; what waits is heard before somebody is taken for silent.
      this.#alarm.look();
    };
    const page = globalThis.document;
    const { connection } = /** @type {{connection?: EventTarget & {type?: string}}} */ (globalThis.navigator ?? {});
    globalThis.addEventListener?.("online", networkChanged, { signal });
    globalThis.addEventListener?.(
      "pageshow",
      (/** @type {PageTransitionEvent} */ event) => {
        if (event.persisted) networkChanged();
      },
      { signal },
    );
    page?.addEventListener("visibilitychange", () => page.visibilityState === "visible" && isBack(), { signal });
    page?.addEventListener("resume", isBack, { signal });
    let type = connection?.type;
    connection?.addEventListener?.(
      "change",
      () => {
        // It also tells of each new guess at the speed.
        if (connection.type === type) return;
        type = connection.type;
        networkChanged();
      },
      { signal },
    );
    return () => looking.abort();
  }

  /** The network is another one now, or is there again. */
  addressesChanged() {
    if (!this.#isLive) return;
    this.#transport.doubt({ networkChanged: true });
    this.feed((node, now) => node.addressesChanged(now));
  }

  // --- driving the node ---

  /** Seconds, on a clock that only goes forward. */
  now() {
    return performance.now() / 1000;
  }

  /** There is one from the first welcome on. */
  get node() {
    return /** @type {Node} */ (this.#node);
  }

  /** @param {() => void} step */
  #guard(step) {
    try {
      step();
    } catch (error) {
      this.#crash(error);
    }
  }

  /**
   * Tell the node something, and do what it says.
   * @param {(node: Node, now: number) => NodeOutput[]} tell
   */
  feed(tell) {
    if (this.#node === null || this.state === "closed") return;
    try {
      this.do(tell(this.#node, this.now()));
    } catch (error) {
      this.#crash(error);
    }
  }

  /**
   * Do what the node said.
   * @param {readonly NodeOutput[]} outputs
   */
  do(outputs) {
    for (const output of outputs) {
      switch (output.kind) {
        case "Deliver":
          this.#deliver(output);
          break;
        case "Ready":
          this.pump(output.peerId);
          this.#records.get(output.peerId)?.bell.ring();
          break;
        case "SendFrame":
          this.#sendFrame(output.peerId, output.path, output.data);
          break;
        case "Ponged": {
          const record = this.#recordOf(output.peerId);
          // What was never asked is no answer: a connection's own ping, say, answered over the relay.
          if (output.nonce > record.pingsSent) break;
          record.pingsAnswered = Math.max(record.pingsAnswered, output.nonce);
          record.bell.ring();
          break;
        }
        case "RequestsRefused":
          this.#requestsRefused(output.peerId, output.numbers);
          break;
        case "Tell":
          this.#told(output.event);
          break;
        case "Signal":
          this.#sendSignal(output.message);
          break;
        case "Run":
          this.#enqueue(output);
          break;
        case "Probe":
          this.#connection(output.peerId, output.epoch)?.ping(output.nonce);
          break;
        case "UseServers":
          this.iceServers = [...this.config.iceServers, ...output.servers];
          break;
        case "ReportLinks":
          this.#transport.report(output.links);
      }
    }
    this.#alarm.set(this.node.nextDeadline());
  }

  /** When the node wants to be called next, in seconds from now; null when it doesn't. */
  get nextDeadline() {
    const at = this.#node?.nextDeadline() ?? null;
    return at === null ? null : at - this.now();
  }

  /**
   * @param {string} peerId
   * @param {number} path
   * @param {Uint8Array} data
   */
  #sendFrame(peerId, path, data) {
    if (path === RELAY) {
      const peer = this.peers.get(peerId);
      if (peer !== undefined) this.#transport.forward(peerId, peer.incarnation, data);
    } else {
      this.#connection(peerId, path)?.sendFrame(data);
    }
  }

  /**
   * Send what there is, or with the rest of what this turn of the event loop brings.
   * @param {string} peerId
   */
  #sendSoon(peerId) {
    if (this.#corked.has(peerId)) {
      this.#corked.set(peerId, true);
      return;
    }
    if (!this.#corked.size) this.#turns.after(() => this.#uncork());
    this.#corked.set(peerId, false);
    this.pump(peerId);
  }

  #uncork() {
    // Who had more to say is likely to go on: what it says next is put together as well.
    for (const [peerId, hasMore] of this.#corked) {
      if (hasMore) this.#corked.set(peerId, false);
      else this.#corked.delete(peerId);
    }
    if (this.#corked.size) this.#turns.after(() => this.#uncork());
    for (const peerId of [...this.#corked.keys()]) this.#guard(() => this.pump(peerId));
  }

  /**
   * The path to a peer takes more.
   * @param {string} peerId
   */
  roomFor(peerId) {
    if (this.#node !== null) this.#guard(() => this.pump(peerId));
  }

  /**
   * Send what is ready to a peer, as far as its path takes it.
   * @param {string} peerId
   */
  pump(peerId) {
    const peer = this.peers.get(peerId);
    if (peer === undefined) return;
    const delivery = this.node.delivery(peerId);
    const path = delivery.out;
    if (path === null) return;
    if (path === RELAY) {
      const transport = this.#transport;
      for (let room = transport.forwardRoom(peerId); room > 0; room = transport.forwardRoom(peerId)) {
        const data = delivery.pull(Math.min(room, FRAME_SIZE));
        if (data === null) return;
        transport.forward(peerId, peer.incarnation, data);
      }
      return;
    }
    const connection = this.#connection(peerId, path);
    if (connection === null) return;
    const most = 2 * this.#parts.lowBuffer;
    let hasSpoken = false;
    while (connection.bufferedAmount <= most) {
      const data = delivery.pull(FRAME_SIZE);
      if (data === null) break;
      connection.sendFrame(data);
      hasSpoken = true;
    }
    if (hasSpoken) this.node.spoke(peerId, this.now());
  }

  /**
   * @param {string} peerId
   * @param {number} epoch
   */
  #connection(peerId, epoch) {
    const lane = this.#lanes.get(peerId);
    return lane !== undefined && lane.epoch === epoch ? lane.connection : null;
  }

  /** @param {SignalOut} message */
  #sendSignal(message) {
    try {
      this.#transport.send(message);
    } catch (error) {
      // Too many wait: the attempt it belongs to runs into its deadline, and is made again. Or the
      // transport has ended, which `onEnd` says.
      if (!(error instanceof SignalingBacklog || error instanceof MeshClosed)) throw error;
    }
  }

  /**
   * An ICE server was asked by a connection.
   * @param {IceServerReport} report
   */
  serverReported(report) {
    const { url, outcome, detail } = report;
    const before = this.serverReports.get(url);
    this.serverReports.set(url, report);
    if (this.serverReports.size > MAX_SERVER_REPORTS) {
      for (const oldest of this.serverReports.keys()) {
        this.serverReports.delete(oldest);
        break;
      }
    }
    if (before?.outcome !== outcome || before.detail !== detail) this.#tell(report);
  }

  /**
   * Begin an ICE restart with a peer, or with all.
   * @param {string | null} peerId
   */
  restartIce(peerId) {
    this.feed((node, now) => node.forceRestart(peerId, now));
  }

  /** @param {string} peerId */
  #recordOf(peerId) {
    return /** @type {PeerRecord} */ (this.#records.get(peerId));
  }

  /**
   * What is kept of this incarnation of a peer, while it is there.
   * @param {string} peerId
   * @param {string} incarnation
   */
  #record(peerId, incarnation) {
    return this.peers.get(peerId)?.incarnation === incarnation ? this.#recordOf(peerId) : null;
  }

  // --- operations on connections ---

  /** @param {Extract<NodeOutput, {kind: "Run"}>} run */
  #enqueue(run) {
    let lane = this.#lanes.get(run.peerId);
    if (lane === undefined) {
      lane = new Lane();
      this.#lanes.set(run.peerId, lane);
    }
    if (run.operation.kind === "CloseConnection") {
      // What is still to be done for it is pointless now, and what is being done as well.
      lane.queue = lane.queue.filter((each) => each.incarnation !== run.incarnation || each.epoch !== run.epoch);
      if (lane.isOf(run)) lane.endEarly?.();
      this.#record(run.peerId, run.incarnation)?.bell.ring();
    }
    lane.queue.push(run);
    lane.worker ??= this.#work(run.peerId, lane);
  }

  /**
   * @param {string} peerId
   * @param {Lane} lane
   */
  async #work(peerId, lane) {
    await null; // what the node said is all done first
    try {
      for (let run = lane.queue.shift(); run !== undefined; run = lane.queue.shift()) {
        if (run.operation.kind !== "CloseConnection") {
          await this.#operate(lane, run);
        } else if (lane.connection !== null && lane.isOf(run)) {
          await this.#closeConnection(lane.connection);
          lane.connection = null;
        }
      }
    } catch (error) {
      this.#crash(error);
    }
    lane.worker = null;
    if (lane.connection === null && !this.peers.has(peerId)) this.#lanes.delete(peerId);
  }

  /**
   * @param {Lane} lane
   * @param {Extract<NodeOutput, {kind: "Run"}>} run
   */
  async #operate(lane, run) {
    const { peerId, incarnation, epoch, operation } = run;
    let sdp;
    try {
      sdp = await this.#runOperation(lane, run);
    } catch (error) {
      if (error === GIVEN_UP) return;
      if (!(error instanceof MeshError)) report(error); // a fault, but no reason to end for
      const why = error instanceof MeshError ? error : new ConnectionFailed(String(error));
      this.feed((node, now) => node.operationFailed(peerId, incarnation, epoch, operation, why, now));
      return;
    }
    if (typeof sdp !== "string") return;
    const made = sdp;
    if (operation.kind === "MakeOffer" || operation.kind === "AcceptOffer") {
      this.feed((node, now) => node.operationDone(peerId, incarnation, epoch, operation, made, now));
    }
  }

  /**
   * The local description, when the operation makes one. Throws `GIVEN_UP` when it is.
   * @param {Lane} lane
   * @param {Extract<NodeOutput, {kind: "Run"}>} run
   * @returns {Promise<string | void>}
   */
  async #runOperation(lane, run) {
    const { peerId, incarnation, epoch, operation } = run;
    const isFirst = (operation.kind === "MakeOffer" || operation.kind === "AcceptOffer") && !operation.generation;
    if (isFirst) {
      if (lane.connection !== null) throw new Error("the old connection is closed before the new one speaks");
      if (!this.#isLive || this.#record(peerId, incarnation) === null) return; // it left meanwhile
      lane.connection = this.#parts.connection(new ShellObserver(this, run));
      lane.incarnation = incarnation;
      lane.epoch = epoch;
    }
    if (!lane.isOf(run)) return;
    const connection = /** @type {ShellConnection} */ (lane.connection);
    /** @type {Promise<never>} */
    const end = new Promise((_, reject) => (lane.endEarly = () => reject(GIVEN_UP)));
    try {
      // Nothing ends a promise: one that is given up is not listened to any more.
      return await Promise.race([end, Shell.#operation(connection, operation)]);
    } finally {
      lane.endEarly = null;
    }
  }

  /**
   * @param {ShellConnection} connection
   * @param {Operation} operation
   * @returns {Promise<string | void>}
   */
  static async #operation(connection, operation) {
    switch (operation.kind) {
      case "MakeOffer":
        return connection.createOffer(operation.generation);
      case "AcceptOffer":
        return connection.acceptOffer(operation.generation, operation.sdp);
      case "AcceptAnswer":
        return connection.acceptAnswer(operation.generation, operation.sdp);
      case "AddCandidates":
        return connection.addCandidates(operation.generation, operation.candidates, operation.end);
    }
  }

  /** @param {ShellConnection} connection */
  async #closeConnection(connection) {
    const late = new MeshTimeout(`a connection did not close within ${this.config.closeTimeout} s`);
    try {
      await scoped({ timeout: this.config.closeTimeout, late: () => late }, (signal) =>
        abortable(Promise.resolve(connection.close()), signal),
      );
    } catch (error) {
      report(error); // whatever it is, the connection is done with
    }
  }

  /**
   * What the connection to a peer says of itself; null when there is none.
   * @param {string} peerId
   */
  async connectionStats(peerId) {
    return (await this.#lanes.get(peerId)?.connection?.stats()) ?? null;
  }

  // --- events ---

  /** @param {any} event */
  #told(event) {
    switch (event.kind) {
      case "PeerJoined": {
        const { peerId, incarnation, name, metadata } = event;
        const record = new PeerRecord(name, metadata, new ChannelBudget(this.config.receiveWindow));
        const peer = new Peer(this, peerId, incarnation, record);
        this.#records.set(peerId, record);
        this.peers.set(peerId, peer);
        this.files.peerJoined(peer);
        break;
      }
      case "PeerUpdated": {
        const record = this.#recordOf(event.peerId);
        record.name = event.name;
        record.metadata = event.metadata;
        break;
      }
      case "MessagesUndelivered":
        for (const each of event.messages) this.#recordOf(event.peerId).undelivered.push(each);
        break;
      case "PeerLeft":
        this.#peerLeft(event.peerId, event.reason);
        break;
      case "PeerStateChanged":
        this.#recordOf(event.peerId).bell.ring();
        // Was it that peer, or is it the network?
        if (event.state === "disconnected") this.#transport.doubt({ networkChanged: false });
        break;
      case "ConnectionReport":
        this.#recordOf(event.peerId).bell.ring();
    }
    this.#tell(event);
  }

  /**
   * @param {string} peerId
   * @param {string} reason
   */
  #peerLeft(peerId, reason) {
    const peer = /** @type {Peer} */ (this.peers.get(peerId));
    const record = this.#recordOf(peerId);
    this.peers.delete(peerId);
    this.#records.delete(peerId);
    record.closedReason = reason;
    for (const { reject } of record.requests.values()) reject(this.#over(peer, record));
    this.#inbox.peerLeft(peer);
    this.files.peerLeft(peer);
    for (const channel of [...record.channels]) channel.abandon(`the peer is gone (${reason})`);
    record.bell.ring();
    const lane = this.#lanes.get(peerId);
    if (lane !== undefined && lane.worker === null && lane.connection === null) this.#lanes.delete(peerId);
  }

  /** @param {any} event */
  #tell(event) {
    this.latest.push({ at: new Date().toISOString(), event: briefly(event) });
    if (this.latest.length > LATEST_EVENTS) this.latest.shift();
    this.bell.ring();
    this.#announcer.tell(event);
  }

  /** A stream of every event from now on. */
  events() {
    return this.#announcer.events();
  }

  // --- messages ---

  /**
   * A stream of messages: what nobody has asked for yet, then everything from now on.
   * @param {string | null} channel
   */
  messages(channel) {
    const stream = this.#inbox.reader(channel);
    if (this.state === "closed") stream.end(this.error);
    return stream;
  }

  /**
   * From now on `told` is called with each message, in its turn among the events. Not to be called
   * again before `unlisten`.
   * @param {(message: Message) => void} told
   */
  listen(told) {
    /** @type {Deque<Arrived>} */
    const waiting = new Deque();
    let isListening = true;
    const next = () => {
      if (isListening && waiting.size) told(this.#inbox.taken(waiting.shift()));
    };
    const stop = this.#inbox.listen({
      isEnded: false,
      put: (arrived) => {
        waiting.push(arrived);
        this.#announcer.later(next);
      },
    });
    this.#unlisten = () => {
      isListening = false;
      stop(waiting);
    };
  }

  /** Nobody listens any more: messages wait for who asks next. */
  unlisten() {
    this.#unlisten?.();
    this.#unlisten = null;
  }

  /** @param {{peerId: string, path: Path, messages: Received[]}} output */
  #deliver({ peerId, path, messages }) {
    const peer = /** @type {Peer} */ (this.peers.get(peerId));
    const record = this.#recordOf(peerId);
    // Answers have somebody who waits for them, and files are written where they go.
    let plain = messages;
    if (messages.some(({ role, channel }) => role > Role.REQUEST || channel === FILE_CHANNEL)) {
      plain = messages.filter((each) => each.role <= Role.REQUEST && each.channel !== FILE_CHANNEL);
      for (const message of messages) {
        if (message.role > Role.REQUEST) this.#answeredBy(peer, record, message);
        else if (message.channel === FILE_CHANNEL) this.#ofAFile(peer, record, message);
      }
    }
    this.#inbox.deliver(peer, path, plain);
  }

  /**
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {Received} answer
   */
  #answeredBy(peer, record, answer) {
    const waiting = record.requests.get(answer.request);
    if (answer.role === Role.REPLY) waiting?.resolve(answer.value());
    else waiting?.reject(new RequestFailed(/** @type {string} */ (answer.value())));
    this.#taken(peer, answer);
  }

  /**
   * @param {string} peerId
   * @param {readonly number[]} numbers
   */
  #requestsRefused(peerId, numbers) {
    for (const number of numbers) {
      this.#recordOf(peerId).requests.get(number)?.reject(
        new MessageTooLarge(
          `${repr(peerId)} does not take this request: it is larger than its limit, or on one channel more ` +
            "than it has room for",
        ),
      );
    }
  }

  /**
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {Received} message
   */
  #ofAFile(peer, record, message) {
    const taken = () => this.#taken(peer, message);
    const answer =
      message.role === Role.REQUEST
        ? {
            reply: (/** @type {unknown} */ data) => this.#answerFile(peer, message, data, Role.REPLY),
            error: (/** @type {string} */ text) => this.#answerFile(peer, message, text, Role.ERROR),
          }
        : null;
    try {
      if (answer !== null) this.files.request(peer, message.value(), answer);
      else if (message.valueKind === Kind.BYTES) this.files.data(peer, message.payload, taken);
      else throw new ProtocolError("a piece of a file is bytes", { code: "bad_file", field: "payload" });
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#complain(peer.id, record, error);
      if (answer !== null) answer.error(error.message);
      else taken();
    }
  }

  /**
   * Answer a request about a file; dropped when the peer is gone.
   *
   * The request counts as taken when its answer is accepted, which waits for room like all that goes
   * to this peer: so no peer can have answers pile up that it does not read.
   * @param {Peer} peer
   * @param {Received} request
   * @param {unknown} data
   * @param {RoleValue} role
   */
  #answerFile(peer, request, data, role) {
    const present = this.peers.get(peer.id); // it may have left and come back meanwhile
    if (!this.#isLive || present?.incarnation !== peer.incarnation) return;
    const answer = encodedMessage(data, FILE_CHANNEL, this.maxMessageSize, role, request.request);
    this.send(present, answer, null).then(
      () => this.#taken(peer, request),
      (error) => {
        if (error instanceof ClosedError) return;
        if (error instanceof MessageTooLarge || error instanceof TooManyChannels) this.#taken(peer, request);
        else this.#crash(error);
      },
    );
  }

  /**
   * @param {Peer} peer
   * @param {Blob} blob
   * @param {FileOptions} options
   */
  async sendFile(peer, blob, options) {
    this.#present(peer);
    const wire = {
      /** @type {(data: unknown, options: {signal: AbortSignal}) => Promise<any>} */
      request: (data, { signal }) => this.request(peer, data, { channel: FILE_CHANNEL, timeout: null, signal }),
      /** @type {(data: Uint8Array, options: {signal: AbortSignal}) => Promise<void>} */
      send: async (data, { signal }) =>
        this.send(peer, encodedMessage(data, FILE_CHANNEL, this.maxMessageSize), signal),
    };
    return this.files.send(peer, wire, blob, options);
  }

  /**
   * @param {Peer} peer
   * @param {Received} message
   */
  #taken(peer, message) {
    if (this.#node === null || this.state === "closed") return;
    const outputs = this.#node.taken(peer.id, peer.incarnation, message.number, message.charge);
    if (outputs.length) this.#guard(() => this.do(outputs));
  }

  // --- what a Peer asks for ---

  /**
   * How it stands with a peer that is there.
   * @param {string} peerId
   */
  report(peerId) {
    return this.node.report(peerId, this.now());
  }

  /**
   * The figures of a peer that is there, for the statistics.
   * @param {string} peerId
   */
  counts(peerId) {
    const link = this.node.link(peerId);
    const delivery = this.node.delivery(peerId);
    const { history } = link;
    return {
      epoch: link.epoch,
      generation: link.generation,
      attempts: history.attempts,
      connections: history.connections,
      failures: link.failures,
      connectTime: history.connections ? history.connectTime : null,
      restarts: history.restarts,
      fallbacks: history.fallbacks,
      failure: history.failure,
      messagesSent: delivery.messagesSent,
      messagesDirect: delivery.messagesDirect,
      messagesReceived: delivery.messagesReceived,
      bytesSent: delivery.bytesSent,
      bytesReceived: delivery.bytesReceived,
    };
  }

  /** The largest message that may be sent, in bytes. */
  get maxMessageSize() {
    return this.config.maxMessageSize;
  }

  /** @param {Peer} peer */
  stateOf(peer) {
    return this.node.stateOf(peer.id);
  }

  /** @param {Peer} peer */
  iceStateOf(peer) {
    return this.node.iceStateOf(peer.id);
  }

  /** @param {Peer} peer */
  pathOf(peer) {
    return this.node.pathOf(peer.id);
  }

  /** @param {Peer} peer */
  rttOf(peer) {
    return this.node.rttOf(peer.id);
  }

  /**
   * Have a message accepted as soon as its channel has room. See `Peer.send`.
   * @param {Peer} peer
   * @param {Outgoing} message
   * @param {AbortSignal | null} signal
   */
  async send(peer, message, signal) {
    signal?.throwIfAborted();
    const record = this.#present(peer);
    const { channel } = message;
    let line = record.lines.get(channel);
    if (line === undefined) {
      if (record.burst < SEND_BURST && this.#accept(peer, record, message)) return;
      line = new SendLine();
      record.lines.set(channel, line);
    }
    await line.enter(signal);
    try {
      if (record.burst >= SEND_BURST) {
        record.burst = 0;
        await this.#turns.next(); // a loop that only sends would keep everybody else out
        signal?.throwIfAborted();
      }
      while (!this.#accept(peer, this.#still(peer, record), message)) await record.bell.wait(signal);
    } finally {
      line.leave();
      if (line.isFree) record.lines.delete(channel);
    }
  }

  /**
   * Take it on now, if there is room.
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {Outgoing} message
   */
  #accept(peer, record, message) {
    const delivery = this.node.delivery(peer.id);
    if (!delivery.hasRoom(message.channel)) return false;
    delivery.accept(message);
    record.burst += message.size + OVERHEAD;
    this.#sendSoon(peer.id);
    return true;
  }

  /**
   * Like `#present`, for somebody who has been waiting since the peer was.
   * @param {Peer} peer
   * @param {PeerRecord} record
   */
  #still(peer, record) {
    if (record.closedReason !== null) throw this.#over(peer, record);
    return this.#present(peer);
  }

  /**
   * What those are told who have been waiting for a peer that is gone.
   * @param {Peer} peer
   * @param {PeerRecord} record
   */
  #over(peer, record) {
    if (this.#isStopping) return this.closedError();
    const { undelivered: messages } = record;
    if (!messages.length) return this.#gone(peer);
    const reason = record.closedReason ?? "closed";
    return new Undelivered(
      `peer ${repr(peer.id)} is gone (${reason}), and ${messages.length} messages to it were not acknowledged`,
      { reason, messages },
    );
  }

  /**
   * Send a request, and wait for its answer. See `Peer.request`.
   * @param {Peer} peer
   * @param {unknown} data
   * @param {{channel: string, timeout: number | null, signal: AbortSignal | null}} options
   * @returns {Promise<any>}
   */
  async request(peer, data, { channel, timeout, signal }) {
    const record = this.#present(peer);
    // Not by peer: one that left may come back, and its late answers with it.
    const number = ++this.#requests;
    const message = encodedMessage(data, channel, this.maxMessageSize, Role.REQUEST, number);
    const late = () => new MeshTimeout(`${repr(peer.id)} did not answer within ${timeout} s`);
    return scoped({ timeout, signal, late }, async (scope) => {
      const answer = new Promise((resolve, reject) => record.requests.set(number, { resolve, reject }));
      answer.catch(() => {}); // it may come when nobody waits for it any more
      try {
        await this.send(peer, message, scope);
        return await abortable(answer, scope);
      } finally {
        record.requests.delete(number);
      }
    });
  }

  /** @param {Peer} peer */
  #present(peer) {
    if (!this.#isLive || this.#isStopping) this.checkRunning();
    if (this.peers.get(peer.id) !== peer) throw this.#gone(peer);
    return this.#recordOf(peer.id);
  }

  /** @param {Peer} peer */
  #gone(peer) {
    const reason = peer.closedReason ?? "closed";
    return new PeerClosed(`peer ${repr(peer.id)} is gone (${reason})`, { reason });
  }

  /**
   * Wait until everything accepted so far has arrived.
   * @param {Peer} peer
   * @param {{timeout: number | null, signal: AbortSignal | null}} options
   */
  async flush(peer, { timeout, signal }) {
    this.#present(peer);
    const late = () =>
      new MeshTimeout(`${repr(peer.id)} did not confirm within ${timeout} s that everything has arrived`);
    await scoped({ timeout, signal, late }, (scope) => this.#confirm(peer, scope));
  }

  /**
   * Wait until all that is accepted now has arrived.
   * @param {Peer} peer
   * @param {AbortSignal | null} signal
   */
  async #confirm(peer, signal) {
    const record = this.#record(peer.id, peer.incarnation);
    if (record === null) throw this.#gone(peer);
    const delivery = this.node.delivery(peer.id);
    const mark = delivery.mark();
    if (!mark.length) return;
    delivery.ask();
    this.pump(peer.id);
    while (!delivery.arrived(mark)) {
      if (record.closedReason !== null) throw this.#over(peer, record);
      await record.bell.wait(signal);
    }
  }

  async #confirmAll() {
    const signal = this.#hurry.signal;
    const late = () => new MeshTimeout("not all has arrived");
    const confirm = (/** @type {AbortSignal | null} */ scope) =>
      Promise.allSettled([...this.peers.values()].map((peer) => this.#confirm(peer, scope)));
    if (signal.aborted) return;
    for (const result of await scoped({ timeout: this.config.closeTimeout / 2, signal, late }, confirm)) {
      if (result.status === "rejected" && !signal.aborted && !(result.reason instanceof MeshError)) report(result.reason);
    }
  }

  /**
   * Send a ping on the path that messages take; true when it is answered, false when that path is
   * gone.
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {AbortSignal | null} signal
   */
  async #isAnswered(peer, record, signal) {
    const nonce = ++record.pingsSent;
    const delivery = this.node.delivery(peer.id);
    const path = delivery.out;
    this.do(this.node.ping(peer.id, nonce));
    while (record.pingsAnswered < nonce) {
      if (record.closedReason !== null) throw this.#gone(peer);
      if (path === null || delivery.out !== path) return false;
      await record.bell.wait(signal);
    }
    return true;
  }

  /**
   * A round trip on the path that messages take; whatever goes wrong is in the result.
   * @param {Peer} peer
   * @param {number} timeout
   * @returns {Promise<PathTest>}
   */
  async testPath(peer, timeout) {
    const record = this.#record(peer.id, peer.incarnation);
    const began = this.now();
    /** @type {Path | null} */
    let path = null;
    /** @type {string | null} */
    let error = null;
    if (record === null || peer.state !== "connected") {
      error = `the peer is ${peer.state}`;
    } else {
      path = peer.path;
      const late = () => new MeshTimeout(`no answer within ${timeout} s`);
      try {
        const isAnswered = await scoped({ timeout, late }, (signal) => this.#isAnswered(peer, record, signal));
        if (!isAnswered) error = "the path changed meanwhile";
      } catch (exc) {
        if (!(exc instanceof MeshError)) throw exc;
        error = exc.message;
      }
    }
    const rtt = error === null ? this.now() - began : null;
    return { kind: "PathTest", peerId: peer.id, path, rtt, error };
  }

  /**
   * Open a plain data channel to a connected peer.
   * @param {Peer} peer
   * @param {string} label
   * @param {ChannelOptions} options
   */
  openChannel(peer, label, options) {
    const record = this.#present(peer);
    const connection = this.#lanes.get(peer.id)?.connection ?? null;
    if (connection === null) {
      throw new ChannelClosed(`the connection to ${repr(peer.id)} has just ended`, { reason: "closed" });
    }
    return this.#channel(peer, record, connection.openChannel(label, options));
  }

  /**
   * The other side opened a plain data channel.
   * @param {string} peerId
   * @param {string} incarnation
   * @param {RawChannel} raw
   */
  channelOpened(peerId, incarnation, raw) {
    const record = this.#record(peerId, incarnation);
    if (record === null || !this.#isLive) {
      raw.close();
    } else if (record.channels.size >= MAX_PLAIN_CHANNELS) {
      raw.close();
      const text = `${repr(peerId)} has ${MAX_PLAIN_CHANNELS} channels open, the limit; one more was closed`;
      this.#complain(peerId, record, new ProtocolError(text, { code: "too_many_channels", field: "label" }));
    } else {
      const channel = this.#channel(/** @type {Peer} */ (this.peers.get(peerId)), record, raw);
      this.#told({ kind: "ChannelOpened", peerId, channel });
    }
  }

  /**
   * Nothing ends that could keep more of it from coming: it is told now and then.
   * @param {string} peerId
   * @param {PeerRecord} record
   * @param {ProtocolError} error
   */
  #complain(peerId, record, error) {
    if (this.now() - record.complained < SHELL_COMPLAINS_EVERY) return;
    record.complained = this.now();
    this.#told({ kind: "BadInput", peerId, error });
  }

  /**
   * @param {Peer} peer
   * @param {PeerRecord} record
   * @param {RawChannel} raw
   */
  #channel(peer, record, raw) {
    const channel = new Channel(raw, peer, {
      budget: record.budget,
      sendBuffer: this.config.sendBuffer,
      closed: (each) => record.channels.delete(each),
    });
    record.channels.add(channel);
    return channel;
  }
}

/**
 * Whether the relay says that the seat is somebody else's: of another page or process, or of another
 * account than the one that our join token is for.
 * @param {unknown} error
 */
function isSeatRefused(error) {
  return error instanceof PeerIdTaken || (error instanceof Forbidden && error.field === "$.token");
}

/**
 * An event as the diagnostics show it: nothing that people said, and nothing that JSON can't have.
 * @param {any} event
 * @returns {any}
 */
function briefly(event) {
  const { error, channel, messages, metadata, text, sha256, ...rest } = event;
  if (event.kind === "FileOffered" || event.kind === "FileWithdrawn") {
    const { name, reason, ...file } = rest;
    return file;
  }
  return {
    ...rest,
    ...(error instanceof Error && { error: briefError(error) }),
    ...(channel instanceof Channel && { channel: channel.label }),
    ...(Array.isArray(messages) && { messages: messages.length }),
  };
}

/** @param {Error} error */
function briefError(error) {
  const { code = null, field = null, reason = null } = /** @type {any} */ (error);
  return { name: error.name, message: error.message, code, field, reason };
}

// --- manager.js ----------------------------------------------------------------------------------

// `PeerManager`: a room's peers, found, connected and kept connected. The same as meshpeer's
// manager.py.

/**
 * A Map that can only be read, and shows what is there now.
 * @template K, V
 */
class MapView {
  #map;

  /** @param {ReadonlyMap<K, V>} map */
  constructor(map) {
    this.#map = map;
  }

  get size() {
    return this.#map.size;
  }

  /** @param {K} key */
  get(key) {
    return this.#map.get(key);
  }

  /** @param {K} key */
  has(key) {
    return this.#map.has(key);
  }

  keys() {
    return this.#map.keys();
  }

  values() {
    return this.#map.values();
  }

  entries() {
    return this.#map.entries();
  }

  /** @param {(value: V, key: K) => void} callback */
  forEach(callback) {
    for (const [key, value] of this.#map) callback(value, key);
  }

  [Symbol.iterator]() {
    return this.#map.entries();
  }
}

/** Tools to look into a `PeerManager` that runs, as `PeerManager.debug`. */
class Debug {
  #shell;
  #stats;

  /**
   * @param {Shell} shell
   * @param {() => object} stats
   */
  constructor(shell, stats) {
    this.#shell = shell;
    this.#stats = stats;
  }

  /** How it stands with each peer: the latest `ConnectionReport`s. */
  getConnections() {
    return [...this.#shell.peers.keys()].map((peerId) => this.#shell.report(peerId));
  }

  /**
   * Begin an ICE restart (RFC 8445, section 9) with a peer, or with all.
   *
   * Returns at once; `connection-report` tells when it took over. Where there is no connection nothing
   * happens. Throws `ConfigError` for a peer that is not there, `MeshClosed`.
   * @param {string | null} [peerId]
   */
  forceICERestart(peerId = null) {
    this.#shell.checkRunning();
    if (peerId !== null && !this.#shell.peers.has(peerId)) {
      throw new ConfigError(`peer ${repr(String(peerId))} is not in the room`);
    }
    this.#shell.restartIce(peerId);
  }

  /**
   * A round trip to every peer over its path, all at the same time.
   *
   * `timeout` is in seconds. One that does not answer, or is not connected, is told with the reason.
   * Throws `MeshClosed`.
   * @param {{timeout?: number}} [options]
   * @returns {Promise<PathTest[]>}
   */
  async testP2PWithAllPeers({ timeout = 5 } = {}) {
    this.#shell.checkRunning();
    return Promise.all([...this.#shell.peers.values()].map((peer) => this.#shell.testPath(peer, timeout)));
  }

  /** What `PeerManager.stats` gives. */
  getStats() {
    return this.#stats();
  }

  /** How it stands with the relay. */
  getSignalingStatus() {
    return this.#shell.signalingStatus();
  }

  /**
   * All there is to know, as plain JSON: what a report of a fault should have with it. There are no
   * secrets and nothing of what was said in it, but addresses.
   */
  async getDiagnostics() {
    const shell = this.#shell;
    const peers = await Promise.all(
      [...shell.peers.keys()].map(async (peerId) => {
        const known = { report: shell.report(peerId), counts: shell.counts(peerId) };
        let connection;
        try {
          connection = await shell.connectionStats(peerId);
        } catch (error) {
          connection = { error: String(error) };
        }
        return [peerId, { ...known, connection }];
      }),
    );
    return {
      at: new Date().toISOString(),
      agent: globalThis.navigator?.userAgent ?? null,
      visible: globalThis.document?.visibilityState ?? null,
      online: globalThis.navigator?.onLine ?? null,
      signaling: shell.signalingStatus(),
      timers: { nextDeadline: shell.nextDeadline },
      peers: Object.fromEntries(peers),
      iceServers: [...shell.serverReports.values()],
      events: [...shell.latest],
    };
  }
}

/**
 * Enters a room, connects to everybody in it, and keeps it so.
 *
 * What happens is told by events: a `CustomEvent` whose `detail` is the event, `{kind: "PeerJoined", …}`
 * as "peer-joined", and so on; `{kind: "Message", …}` as "message": who listens to that has taken it.
 * Listeners are called in order, when all that belongs to it is done; what one throws is reported as an
 * uncaught error is, and disturbs nobody else. Durations are in seconds. Where a method takes an
 * AbortSignal, aborting it makes the call throw the signal's reason.
 */
class PeerManager extends EventTarget {
  /** @type {Shell} */
  #shell;
  #debug;
  #peers;
  /** Those to "message", by what was given and whether it captures.
      @type {Map<EventListenerOrEventListenerObject, Map<boolean, () => void>>} */
  #messageListeners = new Map();

  /**
   * `peerId` is random when it is not given. `metadata` is JSON-able and small (4096 bytes). `config`
   * is a `MeshConfig`, or some of its settings. `joinToken` shows to the relay that we may join, where
   * it asks for that: a token, or a function that gives one for each connection, as one that expires
   * needs.
   *
   * `keepSeat`: a page that is loaded anew in the same tab is the same peer again, at once; a tab that
   * was duplicated is another one. What that takes is kept in sessionStorage. `resumeToken` is what an
   * earlier page with this `peerId` had, for who keeps it himself.
   *
   * Throws `ConfigError` for arguments that can't be right. Nothing is contacted before `start`.
   * @param {string | URL} url of the relay (`wss://` or `ws://`), or of a page of the relay's
   * @param {object} options
   * @param {string} options.room
   * @param {string | null} [options.peerId]
   * @param {string | null} [options.name]
   * @param {Metadata | null} [options.metadata]
   * @param {Partial<MeshSettings> | MeshConfig} [options.config]
   * @param {JoinTokenSource | null} [options.joinToken]
   * @param {string | null} [options.resumeToken]
   * @param {boolean} [options.keepSeat]
   * @param {Partial<ShellParts>} [options.parts] for tests: what the browser is to be replaced with
   */
  constructor(
    url,
    {
      room,
      peerId = null,
      name = null,
      metadata = null,
      config = {},
      joinToken = null,
      resumeToken = null,
      keepSeat = true,
      parts = {},
    },
  ) {
    super();
    const settings = config instanceof MeshConfig ? config : new MeshConfig(config);
    const join = checkedJoin({
      kind: "Join",
      version: VERSION,
      room,
      peerId: peerId ?? randomId(8),
      incarnation: randomId(16),
      name,
      metadata: metadata ?? {},
      onConflict: settings.onConflict,
      token: resumeToken,
      session: null,
      received: 0,
      attempt: 0,
      joinToken: null,
    });
    const seat = () => takeSeat(`${urlWithoutSecrets(relayAddress(url).href)} ${room}`, { peerId });
    this.#shell = new Shell(join, settings, {
      transport: (told) => new RelayTransport(url, { config: settings, joinToken, ...told }),
      connection: (observer) => new Connection(observer),
      files: (options) => new Files(options),
      seat: keepSeat && resumeToken === null ? seat : null,
      isIdRandom: peerId === null,
      newPeerId: () => randomId(8),
      target: this,
      lowBuffer: LOW_BUFFER,
      ...parts,
    });
    this.#debug = new Debug(this.#shell, () => this.stats());
    this.#peers = new MapView(this.#shell.peers);
  }

  // --- life ---

  /**
   * Enter the room; resolves when the relay has given us a seat.
   *
   * Throws `PeerIdTaken`, `RoomFull`, `Unauthorized`, `Forbidden` or another `RefusedError` when the
   * relay says no. An id that is held for a page which lost its connection is waited for, as is a relay
   * that can't be reached, up to `config.joinTimeout`: then `PeerIdTaken`, or `SignalingUnavailable`,
   * is thrown. `MeshClosed` when it was started before. After an error, or when it is aborted, the
   * manager is closed and nothing is left behind.
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async start({ signal = null } = {}) {
    await this.#shell.start(signal);
  }

  /**
   * Leave the room: says goodbye, closes every connection, and leaves nothing behind.
   *
   * Waits up to half of `config.closeTimeout` for what was sent to arrive, and up to `closeTimeout` for
   * connections that do not close. May be called more than once, at any time, and from a listener.
   * When it is aborted it waits for no arrivals, tears down, and then throws.
   * @param {{signal?: AbortSignal | null}} [options]
   */
  async close({ signal = null } = {}) {
    await this.#shell.close(signal);
  }

  /** `await using` closes it. */
  async [/** @type {any} */ (Symbol).asyncDispose ?? Symbol("asyncDispose")]() {
    await this.close();
  }

  // --- what it knows ---

  /** Our id in the room; final after `start`. */
  get peerId() {
    return this.#shell.join.peerId;
  }

  /** Random, and another one for every `PeerManager`. */
  get incarnation() {
    return this.#shell.join.incarnation;
  }

  get room() {
    return this.#shell.join.room;
  }

  /** Our display name, as the others see it: where the relay gives one, that one, from `start` on. */
  get name() {
    return this.#shell.name;
  }

  /** What we tell of ourselves, as it is now. */
  get metadata() {
    return this.#shell.join.metadata;
  }

  /** `new → joining → joined ⇄ reconnecting → closed`: how it stands with the relay. */
  get state() {
    return this.#shell.state;
  }

  /** The secret that lets a later page take over this peer id; null before `start`. */
  get resumeToken() {
    return this.#shell.token;
  }

  /** Everybody else in the room by id, connected or not: a live, read-only view of a Map. */
  get peers() {
    return this.#peers;
  }

  /** Tools to look into it while it runs. */
  get debug() {
    return this.#debug;
  }

  /**
   * A snapshot: how each peer is connected, what went to and fro, and the ICE servers. Counts of a peer
   * are of this incarnation, also from before it was away. Plain JSON.
   */
  stats() {
    const shell = this.#shell;
    const peers = [...shell.peers].map(([peerId, peer]) => {
      const { incarnation, name, state, iceState, path, rtt } = peer;
      return { peerId, incarnation, name, state, iceState, path, rtt, ...shell.counts(peerId) };
    });
    /** @type {Record<string, number>} */
    const paths = {};
    for (const { path } of peers) if (path !== null) paths[path] = (paths[path] ?? 0) + 1;
    return {
      kind: "MeshStats",
      peerId: this.peerId,
      room: this.room,
      state: this.state,
      peers: Object.fromEntries(peers.map((each) => [each.peerId, each])),
      paths,
      iceServers: Object.fromEntries(shell.serverReports),
    };
  }

  // --- waiting ---

  /**
   * Wait until at least `count` peers are connected, and return those that are.
   *
   * `timeout` is in seconds, null for no limit. Throws `MeshTimeout`, `MeshClosed`.
   * @param {number} [count]
   * @param {{timeout?: number | null, signal?: AbortSignal | null}} [options]
   * @returns {Promise<Peer[]>}
   */
  async waitForPeers(count = 1, { timeout = null, signal = null } = {}) {
    const found = () => {
      const peers = [...this.#shell.peers.values()].filter((peer) => peer.state === "connected");
      return peers.length >= count ? peers : null;
    };
    return this.#waitUntil(found, { timeout, signal }, () => {
      const states = [...this.#shell.peers.values()].map((peer) => `${peer.id} ${peer.state}`).join(", ");
      return `${count} connected peers (there are: ${states || "none"})`;
    });
  }

  /**
   * Wait until this peer is there and connected.
   *
   * `timeout` is in seconds, null for no limit. Throws `MeshTimeout`, `MeshClosed`.
   * @param {string} peerId
   * @param {{timeout?: number | null, signal?: AbortSignal | null}} [options]
   * @returns {Promise<Peer>}
   */
  async waitForPeer(peerId, { timeout = null, signal = null } = {}) {
    const found = () => {
      const peer = this.#shell.peers.get(peerId);
      return peer?.state === "connected" ? peer : null;
    };
    return this.#waitUntil(found, { timeout, signal }, () => {
      const state = this.#shell.peers.get(peerId)?.state ?? "not in the room";
      return `peer ${repr(peerId)} to be connected (it is ${state})`;
    });
  }

  /**
   * @template T
   * @param {() => T | null} found
   * @param {{timeout: number | null, signal: AbortSignal | null}} options
   * @param {() => string} missing
   * @returns {Promise<T>}
   */
  async #waitUntil(found, { timeout, signal }, missing) {
    const late = () => new MeshTimeout(`waited ${timeout} s for ${missing()}`);
    return scoped({ timeout, signal, late }, async (scope) => {
      for (;;) {
        const value = found();
        if (value !== null) return value;
        this.#shell.checkRunning();
        await this.#shell.bell.wait(scope);
      }
    });
  }

  // --- messages and events ---

  /**
   * Send to everybody in the room, encoded once. Returns those who will get it.
   *
   * Resolves when it is accepted for all, as in `Peer.send`: whoever is not connected yet gets it then.
   * A peer that leaves meanwhile, or does not take messages of this size or one channel more, is left
   * out. Throws `InvalidData`, `MessageTooLarge`, `ConfigError`, `MeshClosed`. When it is aborted, it
   * was accepted for some and not for others.
   * @param {unknown} data
   * @param {string} [channel]
   * @param {{signal?: AbortSignal | null}} [options]
   * @returns {Promise<Peer[]>}
   */
  async broadcast(data, channel = "default", { signal = null } = {}) {
    const shell = this.#shell;
    shell.checkRunning();
    if (channel !== "default") checkLabel("channel", channel);
    const message = encodedMessage(data, channel, shell.maxMessageSize);
    const peers = [...shell.peers.values()];
    const results = await Promise.allSettled(peers.map((peer) => shell.send(peer, message, signal)));
    for (const result of results) {
      if (result.status === "fulfilled") continue;
      // What concerns one peer only, it has to itself: gone, or its limit is lower than ours.
      const { reason } = result;
      if (!(reason instanceof PeerClosed || reason instanceof MessageTooLarge || reason instanceof TooManyChannels)) {
        throw reason;
      }
    }
    return peers.filter((_, number) => results[number].status === "fulfilled");
  }

  /**
   * Iterate (`for await`) over the messages of all peers, or over those of one channel.
   *
   * Every caller gets every message from the moment of this call. What arrived before anybody asked is
   * kept for the first who does. Who reads slowly slows the senders down: up to `config.channelWindow`
   * bytes of a peer's channel wait here, and its large messages. The iterator ends with the manager;
   * when something else than `close` ended it, it throws that.
   * @param {string | null} [channel]
   * @returns {AsyncIterableIterator<Message>}
   */
  messages(channel = null) {
    return this.#shell.messages(channel);
  }

  /**
   * Iterate over everything that happens from the moment of this call.
   *
   * Ends after `Closed`. Throws `SlowReader` when more than `config.maxPendingEvents` were not read.
   * @returns {AsyncIterableIterator<any>}
   */
  events() {
    return this.#shell.events();
  }

  /**
   * Wait for the next file that a peer sends, or take the one that waits.
   *
   * `sender` is the id of the peer to take it from, any by default. `timeout` is how long to wait for
   * one to be offered, in seconds, null for no limit. It becomes a Blob, or goes to `sink`. Throws
   * `MeshTimeout`, `TransferFailed` when the sender gave up or what arrived is not what was offered,
   * `PeerClosed` when the sender is gone, `MeshClosed`. When it is aborted, the sender is told.
   * @param {object} [options]
   * @param {string | null} [options.sender]
   * @param {number | null} [options.timeout]
   * @param {((progress: FileProgress) => unknown) | null} [options.onProgress]
   * @param {FileSink | WritableStream<Uint8Array> | null} [options.sink]
   * @param {AbortSignal | null} [options.signal]
   * @returns {Promise<FileReceived>}
   */
  async receiveFile(options = {}) {
    this.#shell.checkRunning();
    return this.#shell.files.receive(options);
  }

  /**
   * Say no to the file that this peer offers. False when it offers none.
   * @param {string} sender
   * @param {string} [why]
   */
  refuseFile(sender, why) {
    return this.#shell.files.refuse(sender, why);
  }

  /** The files that are offered and wait to be received or refused. */
  get fileOffers() {
    return this.#shell.files.offers;
  }

  /**
   * Tell the room a new display name or new metadata; what is not given stays as it is.
   *
   * Throws `ConfigError` for values that can't be right, `MeshClosed`, and `SignalingBacklog` when the
   * relay is away and too much waits for it.
   * @param {{name?: string | null, metadata?: Metadata | null}} changes
   */
  update({ name = null, metadata = null }) {
    const { join } = this.#shell;
    checkedJoin({ ...join, name: name ?? join.name, metadata: metadata ?? join.metadata });
    this.#shell.update(name, metadata);
  }

  // --- listeners ---

  /**
   * As any EventTarget's. Messages go to listeners of "message" while there are some.
   * @override
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} callback
   * @param {AddEventListenerOptions | boolean | null} [options]
   */
  addEventListener(type, callback, options) {
    if (type !== "message" || callback === null) {
      super.addEventListener(type, callback, options ?? {});
      return;
    }
    const given = typeof options === "boolean" ? { capture: options } : (options ?? {});
    const { capture = false, once = false, passive, signal } = given;
    if (signal?.aborted) return;
    const known = this.#messageListeners.get(callback) ?? new Map();
    if (known.has(capture)) return;
    const forget = () => {
      super.removeEventListener("message", listener, { capture });
      signal?.removeEventListener("abort", forget);
      known.delete(capture);
      if (!known.size) this.#messageListeners.delete(callback);
      if (!this.#messageListeners.size) this.#shell.unlisten();
    };
    /** @param {Event} event */
    const listener = (event) => {
      if (once) forget();
      if (typeof callback === "function") return callback.call(this, event);
      return callback.handleEvent(event);
    };
    known.set(capture, forget);
    const isFirst = !this.#messageListeners.size;
    this.#messageListeners.set(callback, known);
    signal?.addEventListener("abort", forget);
    super.addEventListener("message", listener, { capture, passive });
    if (isFirst) {
      this.#shell.listen((detail) => this.dispatchEvent(new CustomEvent("message", { detail })));
    }
  }

  /**
   * @override
   * @param {string} type
   * @param {EventListenerOrEventListenerObject | null} callback
   * @param {EventListenerOptions | boolean | null} [options]
   */
  removeEventListener(type, callback, options) {
    if (type !== "message" || callback === null) {
      super.removeEventListener(type, callback, options ?? {});
      return;
    }
    const capture = typeof options === "boolean" ? options : (options?.capture ?? false);
    this.#messageListeners.get(callback)?.get(capture)?.();
  }
}

/**
 * So many random bytes, for an id: letters and digits, `-` and `_`.
 * @param {number} size
 */
function randomId(size) {
  const bytes = crypto.getRandomValues(new Uint8Array(size));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * What the relay would make of it, before it is asked. Throws `ConfigError`.
 * @param {Join} join
 */
function checkedJoin(join) {
  try {
    const isObject = typeof join.metadata === "object" && !Array.isArray(join.metadata);
    if (!isObject) throw new InvalidData("it is no object");
    encodeValue(join.metadata); // what JSON would leave out without a word
  } catch (error) {
    if (!(error instanceof InvalidData)) throw error;
    throw new ConfigError(`metadata must be JSON-able: ${error.message}`);
  }
  try {
    decodeClient(encode(join));
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    const field = error.field.replace(/^\$\./, "").replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
    const said = error.message.replace(/^malformed message from the client: /, "");
    if (field === "token") throw new ConfigError(`resumeToken can't be that: ${said}`);
    const value = /** @type {any} */ (join)[field];
    const shown = typeof value === "string" ? repr(value) : JSON.stringify(value);
    throw new ConfigError(`${field} can't be ${String(shown).slice(0, 80)}: ${said}`);
  }
  return join;
}

export {
  BlobSink,
  Channel,
  ChannelClosed,
  ClosedError,
  ConfigError,
  ConnectionFailed,
  Debug,
  Forbidden,
  IdentityReplaced,
  InvalidData,
  MeshClosed,
  MeshConfig,
  MeshError,
  MeshTimeout,
  Message,
  MessageTooLarge,
  NetworkError,
  Peer,
  PeerClosed,
  PeerIdTaken,
  PeerManager,
  ProtocolError,
  RateLimited,
  RefusedError,
  RemoteError,
  Removed,
  RequestFailed,
  RoomFull,
  SignalingBacklog,
  SignalingUnavailable,
  SlowReader,
  TooManyChannels,
  TooManyRooms,
  TransferFailed,
  Unauthorized,
  Undelivered,
  UnexpectedInput,
  UsageError,
};
