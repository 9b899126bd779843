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
export class MeshError extends Error {
  /** @param {string} text */
  constructor(text) {
    super(text);
    this.name = new.target.name;
  }
}

/** The calling program did something it should not; the text says what to do instead. */
export class UsageError extends MeshError {}

/** A setting is out of its range; the text names the field, the value and the range. */
export class ConfigError extends UsageError {}

/** Data that is neither text, bytes nor JSON-able. */
export class InvalidData extends UsageError {}

/** A message over `maxMessageSize`; nothing of it was sent. */
export class MessageTooLarge extends UsageError {}

/** More channels of messages than the peer takes; nothing of the message was sent. */
export class TooManyChannels extends UsageError {}

/** An iterator was not read and fell too far behind; what it missed is lost to it. */
export class SlowReader extends UsageError {}

/** A state machine was fed an input that its table does not list; it has not changed. */
export class UnexpectedInput extends UsageError {}

/** What the call was made on is closed; `reason` says why. */
export class ClosedError extends MeshError {
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
export class MeshClosed extends ClosedError {}

/** A newer process or page took this peer id over; this one does not come back. */
export class IdentityReplaced extends MeshClosed {}

/** The operator of the relay took us out of the room; this page does not come back. */
export class Removed extends MeshClosed {}

/** The peer left, its seat ran out, or a new incarnation took its place. */
export class PeerClosed extends ClosedError {}

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
export class Undelivered extends PeerClosed {
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
export class ChannelClosed extends ClosedError {}

/** Nobody's fault: something could not be reached in time. Trying again may help. */
export class NetworkError extends MeshError {}

/** The signalling service can't be reached; the text names its address and the cause. */
export class SignalingUnavailable extends NetworkError {}

/** Too many signals wait for the signalling service already; this one was not taken. */
export class SignalingBacklog extends NetworkError {}

/** A connection attempt to a peer did not succeed. */
export class ConnectionFailed extends NetworkError {}

/** A deadline given by the caller passed; the text says what had not happened. */
export class MeshTimeout extends NetworkError {}

/**
 * The relay said no.
 *
 * `code` is the protocol's word for it, `field` the offending field where there is one, `retryAfter`
 * the seconds after which another try may succeed, or null.
 */
export class RefusedError extends MeshError {
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
export class PeerIdTaken extends RefusedError {}

/** The room has as many members as the relay allows. */
export class RoomFull extends RefusedError {}

/** The relay has as many rooms as it allows. */
export class TooManyRooms extends RefusedError {}

/** More messages in a second than the relay takes from one member. */
export class RateLimited extends RefusedError {}

/** The relay takes only who has a join token; there was none, or it is forged or expired. */
export class Unauthorized extends RefusedError {}

/** The join token is valid, but not for this room or this peer id. */
export class Forbidden extends RefusedError {}

/** The application at the other side said no; the text is its. */
export class RemoteError extends MeshError {}

/** A request was answered with an error. */
export class RequestFailed extends RemoteError {}

/** A file was refused, or what arrived is not what was sent. */
export class TransferFailed extends RemoteError {}

/**
 * The other side sent something malformed, oversized, forged or out of place.
 *
 * It was refused and nothing else changed. `code` is one word for programs, `field` the path of the
 * offending field (`"$"` is the whole message).
 */
export class ProtocolError extends MeshError {
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
export function refusal(code, text, { field = null, retryAfter = null } = {}) {
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
export function utf8Length(text) {
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
export function repr(text) {
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
export function compareTexts(a, b) {
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
export const MAX_VALUE_DEPTH = 512;

/** What the bytes of a message stand for. */
export const Kind = Object.freeze({ BYTES: 0, TEXT: 1, JSON: 2 });
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
export function encodeValue(data) {
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
export function typeName(data) {
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
export function checkValue(kind, payload) {
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
export function decodeValue(kind, payload) {
  if (kind === Kind.BYTES) return payload.length === payload.buffer.byteLength ? payload : payload.slice();
  const text = utf8Decoder.decode(payload);
  return kind === Kind.TEXT ? text : JSON.parse(text);
}

// --- data frames -----------------------------------------------------------------------------------

export const FRAME_VERSION = 1;
/** Bytes of the largest frame: what an endpoint takes that says nothing of its limit (RFC 8841). */
export const MAX_FRAME = 65536;
/** Bytes of a message that one part may have. */
export const MAX_PART = 16384;
/** Bytes that a part has which is not the last of its message, so that parts stay few. */
export const MIN_PART = 1024;
/** What a message is charged beyond its bytes, with its first part: what keeping one takes. */
export const OVERHEAD = 128;
/** Bytes of UTF-8 that the name of a channel may have. */
export const MAX_CHANNEL = 255;
/** What the names of channels begin with that applications can't use. */
export const RESERVED = "meshpeer.";
/** Channels that one side may use: a `Start` that names all of them fits into a frame. */
export const MAX_CHANNELS = 200;
/** The largest number in a frame: what JavaScript counts without a fault. */
export const MAX_COUNT = Number.MAX_SAFE_INTEGER;
/** Bit of a part's flags: a message begins with it. */
export const FIRST = 0x01;
/** Bit of a part's flags: a message ends with it. */
export const LAST = 0x02;

const [F_PARTS, F_RESUME, F_START, F_OPEN, F_ACK, F_PING, F_PONG, F_BYE] = [1, 2, 3, 4, 5, 6, 7, 8].map(
  (type) => (FRAME_VERSION << 4) | type,
);
const KIND_SHIFT = 2;
const ROLE_SHIFT = 4;
const ASKS = 0x01;

/** What a message is for. ERROR: a reply that says why there is no other. */
export const Role = Object.freeze({ PLAIN: 0, REQUEST: 1, REPLY: 2, ERROR: 3 });

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
export const partKind = (part) => /** @type {KindValue} */ ((part.flags >> KIND_SHIFT) & 3);

/**
 * What the message is for. Of the first part only.
 * @param {Part} part
 */
export const partRole = (part) => /** @type {RoleValue} */ ((part.flags >> ROLE_SHIFT) & 3);

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
export function encodeMessage(kind, payload, role = Role.PLAIN, number = 0) {
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
export const isLast = (part) => (part[0] & LAST) !== 0;

/**
 * @param {Uint8Array} part
 * @returns {Part}
 */
const readPart = (part) => readParts(encodeParts([runHead(0, 0, 1), part])).runs[0].parts[0];

/**
 * The number of the request that these encoded parts are; 0 when they are none.
 * @param {readonly Uint8Array[]} parts
 */
export function requestNumber(parts) {
  const first = readPart(parts[0]);
  return partRole(first) === Role.REQUEST ? first.number : 0;
}

/**
 * What `encodeMessage` made these of.
 * @param {readonly Uint8Array[]} parts
 * @returns {[KindValue, RoleValue, Uint8Array]}
 */
export function decodeMessage(parts) {
  const read = parts.map(readPart);
  return [partKind(read[0]), partRole(read[0]), concatenated(read.map((part) => part.payload))];
}

/**
 * What stands before a run of `count` encoded parts.
 * @param {number} channel
 * @param {number} seq
 * @param {number} count
 */
export function runHead(channel, seq, count) {
  const out = new Uint8Array(countSize(channel) + countSize(seq) + countSize(count));
  putCount(out, putCount(out, putCount(out, 0, channel), seq), count);
  return out;
}

const PARTS_HEAD = Uint8Array.of(F_PARTS);

/**
 * A frame of runs: heads by `runHead`, each followed by its parts.
 * @param {readonly Uint8Array[]} pieces
 */
export function encodeParts(pieces) {
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
export function encodeFrame(frame) {
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
export function decodeFrame(data) {
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

export const VERSION = 1;
/** Bytes of JSON that a member's metadata may have. */
export const MAX_METADATA = 4096;
/** Bytes of a join or an update. All that one may say fits in, however it is escaped. */
export const MAX_MEMBER = 40 * 1024;
/** Characters of a token that a join may carry. */
export const MAX_JOIN_TOKEN = 4096;
/** Characters that a text for people may have. */
export const MAX_TEXT = 1024;
/** Characters that a session description may have. */
export const MAX_SDP = 64 * 1024;
/** ICE candidates that one message may carry. */
export const MAX_CANDIDATES = 100;
/** Links that one report may tell about. */
export const MAX_REPORTS = 100;
/** Bytes of UTF-8 that a reason in a report may have. */
export const MAX_REASON = 200;
/** Arrays and objects inside each other that a client's message may have. */
export const MAX_DEPTH = 32;

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
export function encode(message) {
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
export function printable(text, limit = MAX_TEXT) {
  const characters = Array.from(text.slice(0, 2 * limit)).slice(0, limit);
  return characters.map((each) => (isPrintable(each) ? each : "\ufffd")).join("");
}

/**
 * A reason as a report may have it: `printable`, and cut off at `MAX_REASON` bytes.
 * @param {string} text
 */
export function brief(text) {
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
export function decodeClient(data) {
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
export function decodeRelay(data) {
  return readMessage(SCHEMA.relay, data, RELAY_ERRORS).message;
}

/**
 * What one peer says to another inside a signal. Throws `ProtocolError` and nothing else.
 * @param {string | Uint8Array} body
 * @returns {LinkMessage}
 */
export function decodeLink(body) {
  const { message } = readMessage(SCHEMA.link, body, PEER_ERRORS);
  if (message.kind === "Offer" || message.kind === "Answer") checkSdp(message.sdp);
  return message;
}

/**
 * Throws `ProtocolError` when `metadata` is larger than `MAX_METADATA` bytes of JSON.
 * @param {Metadata} metadata
 */
export function checkMetadata(metadata) {
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
export function checkSdp(sdp) {
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
export function countCandidates(sdp) {
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
export const MARK = 1;
/** Bytes that a forwarded frame may have. */
export const MAX_FORWARD = 64 * 1024;
/** Bytes that may stand before the frame. */
export const MAX_HEAD = 3 + 4 * 128 + 1 + 64;
/** Bytes beyond the window that a member may have on its way, for frames that must not wait. */
export const FORWARD_SLACK = 64 * 1024;

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
export function encodeForward(peerId, incarnation, frame) {
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
export function decodeForward(data) {
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
