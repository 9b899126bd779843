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

// --- values ----------------------------------------------------------------------------------------

/**
 * Arrays and objects inside each other in a JSON value: half of what Python's stack allows, so that
 * what one side may send the other can decode, wherever in its program it does.
 */
export const MAX_VALUE_DEPTH = 512;

/** What the bytes of a message stand for. */
export const Kind = Object.freeze({ BYTES: 0, TEXT: 1, JSON: 2 });
const KIND_NAMES = ["bytes", "text", "json"];

/** @typedef {0 | 1 | 2} KindValue */

/**
 * The kind and the bytes of text, bytes or JSON-able data. The bytes are a copy.
 *
 * Throws `InvalidData`, also for what JSON would leave out or show as `{}`: undefined, functions,
 * and, at any depth, Map, Set, ArrayBuffer and the like.
 * @param {unknown} data
 * @returns {[KindValue, Uint8Array]}
 */
export function encodeValue(data) {
  if (typeof data === "string") {
    if (LONE_SURROGATE.test(data)) throw new InvalidData("text that is not valid Unicode can't be sent");
    return [Kind.TEXT, utf8Encoder.encode(data)];
  }
  if (ArrayBuffer.isView(data)) {
    return [Kind.BYTES, new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice()];
  }
  if (isBuffer(data)) return [Kind.BYTES, new Uint8Array(data).slice()];
  let text;
  try {
    text = JSON.stringify(data);
    if (text === undefined) throw new TypeError("JSON has nothing for it");
    if (text.includes("{}") || text.includes('{"0":')) JSON.stringify(data, refuseOpaque);
  } catch (error) {
    throw new InvalidData(`${typeName(data)} can't be sent (${error instanceof Error ? error.message : error}): give text, bytes or JSON-able data`);
  }
  if (ESCAPED_SURROGATE.test(text)) throw new InvalidData(`${typeName(data)} can't be sent: a text in it is not valid Unicode`);
  if (nestedDeeper(text, MAX_VALUE_DEPTH)) {
    throw new InvalidData(`${typeName(data)} can't be sent: it is nested deeper than ${MAX_VALUE_DEPTH} arrays and objects`);
  }
  return [Kind.JSON, utf8Encoder.encode(text)];
}

// JSON.stringify writes so what is half of a pair, and nothing else.
const ESCAPED_SURROGATE = /(?<!\\)(?:\\\\)*\\ud[89a-f]/;

/**
 * @param {unknown} data
 * @returns {data is ArrayBuffer | SharedArrayBuffer}
 */
function isBuffer(data) {
  return data instanceof ArrayBuffer || (typeof SharedArrayBuffer === "function" && data instanceof SharedArrayBuffer);
}

/** @param {unknown} data */
function typeName(data) {
  if (data === null) return "null";
  return typeof data === "object" ? (data.constructor?.name ?? "object") : typeof data;
}

/**
 * @param {string} _key
 * @param {unknown} value
 */
function refuseOpaque(_key, value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  const plain = Object.getPrototypeOf(value);
  if (ArrayBuffer.isView(value) || (plain !== null && plain !== Object.prototype && !Object.keys(value).length)) {
    throw new TypeError(`${typeName(value)} is nothing that JSON has`);
  }
  return value;
}

/**
 * Whether `text`, which is JSON, has more than `limit` arrays and objects inside each other.
 * @param {string} text
 * @param {number} limit
 */
function nestedDeeper(text, limit) {
  if (text.length <= 2 * limit) return false;
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const c = text.charCodeAt(at);
    if (c === QUOTE) {
      for (at++; text.charCodeAt(at) !== QUOTE; at++) if (text.charCodeAt(at) === BACKSLASH) at++;
    } else if (c === OPEN_ARRAY || c === OPEN_OBJECT) {
      if (++depth > limit) return true;
    } else if (c === CLOSE_ARRAY || c === CLOSE_OBJECT) depth--;
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
  if (kind === Kind.BYTES) return;
  let text;
  try {
    text = utf8Decoder.decode(payload);
  } catch {
    throw badValue(kind, "it is not UTF-8");
  }
  if (kind === Kind.JSON) {
    const scanner = new Scanner(text, VALUE_SOURCE);
    scanner.skip(true);
    scanner.finish();
  }
}

/**
 * @param {KindValue} kind
 * @param {string} text
 */
function badValue(kind, text) {
  return new ProtocolError(`a message of kind ${KIND_NAMES[kind]} does not decode: ${text}`, { code: "bad_message", field: "payload" });
}

/**
 * The data that `encodeValue` was given. `payload` has passed `checkValue`.
 * @param {KindValue} kind
 * @param {Uint8Array} payload
 * @returns {unknown}
 */
export function decodeValue(kind, payload) {
  if (kind === Kind.BYTES) return payload;
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

const [F_PARTS, F_RESUME, F_START, F_OPEN, F_ACK, F_PING, F_PONG, F_BYE] = [1, 2, 3, 4, 5, 6, 7, 8].map((type) => (FRAME_VERSION << 4) | type);
const KIND_SHIFT = 2;
const ROLE_SHIFT = 4;
const ASK = 0x01;

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
 * @typedef {{kind: "Resume", round: number, ask: boolean, maxMessage: number, maxChannels: number, window: number, limits: readonly Limit[]}} Resume
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
 * @typedef {{kind: "Ping", nonce: number}} Ping
 */
/** @typedef {{kind: "Pong", nonce: number}} Pong */
/**
 * The sender leaves the room.
 * @typedef {{kind: "Bye"}} Bye
 */
/** @typedef {Parts | Resume | Start | Open | FrameAck | Ping | Pong | Bye} Frame */

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
  const size = payload.length;
  /** @type {[Uint8Array, number][]} */
  const parts = [];
  let from = 0;
  do {
    const to = Math.min(from + MAX_PART, size);
    const first = from === 0;
    const last = to === size;
    const part = new Uint8Array(
      1 + (first && !last ? countSize(size) : 0) + (first && role ? countSize(number) : 0) + countSize(to - from) + to - from,
    );
    part[0] = (first ? flags | FIRST : 0) | (last ? LAST : 0);
    let at = 1;
    if (first && !last) at = putCount(part, at, size);
    if (first && role) at = putCount(part, at, number);
    at = putCount(part, at, to - from);
    part.set(first && last ? payload : payload.subarray(from, to), at);
    parts.push([part, to - from + (first ? OVERHEAD : 0)]);
    from = to;
  } while (from < size);
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
  return [partKind(read[0]), partRole(read[0]), joined(read.map((part) => part.payload))];
}

/** @param {readonly Uint8Array[]} pieces */
function joined(pieces) {
  let size = 0;
  for (const piece of pieces) size += piece.length;
  const out = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
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
 * @param {Iterable<Uint8Array>} pieces
 */
export function encodeParts(pieces) {
  return joined([PARTS_HEAD, ...pieces]);
}

/** @param {readonly Limit[]} limits */
function* limitCounts(limits) {
  yield limits.length;
  for (const { channel, next, limit } of limits) yield* [channel, next, limit];
}

/**
 * @param {Iterable<number | string>} fields whole numbers, and names of channels
 * @param {number[]} first bytes
 */
function frameOf(fields, ...first) {
  const out = first;
  for (const field of fields) {
    if (typeof field === "number") {
      let value = field;
      for (; value >= 0x80; value = Math.floor(value / 0x80)) out.push((value % 0x80) | 0x80);
      out.push(value);
    } else {
      const name = utf8Encoder.encode(field);
      out.push(name.length, ...name);
    }
  }
  return Uint8Array.from(out);
}

/**
 * The bytes of any frame but `Parts`.
 * @param {Exclude<Frame, Parts>} frame
 * @returns {Uint8Array}
 */
export function encodeFrame(frame) {
  switch (frame.kind) {
    case "Resume":
      return frameOf(
        [frame.round, frame.maxMessage, frame.maxChannels, frame.window, ...limitCounts(frame.limits)],
        F_RESUME,
        frame.ask ? ASK : 0,
      );
    case "Start":
      return frameOf(
        [frame.round, frame.channels.length, ...frame.channels.flatMap((each) => [each.channel, each.seq, each.offset, each.name])],
        F_START,
      );
    case "Open":
      return frameOf([frame.channel, frame.name], F_OPEN);
    case "Ack":
      return frameOf(limitCounts(frame.limits), F_ACK);
    case "Ping":
      return frameOf([frame.nonce], F_PING);
    case "Pong":
      return frameOf([frame.nonce], F_PONG);
    case "Bye":
      return Uint8Array.of(F_BYE);
  }
}

/**
 * @param {string} text
 * @param {string} field
 */
const badFrame = (text, field) => new ProtocolError(`malformed frame: ${text}`, { code: "bad_frame", field });

/** @param {number} flags */
const hex = (flags) => `0x${flags.toString(16).padStart(2, "0")}`;

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
    const stop = Math.min(this.at + 8, data.length);
    let value = 0;
    let scale = 1;
    for (let at = this.at; at < stop; at++) {
      const byte = data[at];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) {
        if (value > MAX_COUNT) break;
        if (!byte && at > this.at) throw badFrame(`${field} is written with more bytes than it needs`, field);
        this.at = at + 1;
        return value;
      }
      scale *= 0x80;
    }
    if (stop - this.at < 8 && !(stop > this.at && data[stop - 1] < 0x80)) throw badFrame(`it ends within ${field}`, field);
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
    if (count * 2 > this.data.length - this.at) throw badFrame(`${count} items can't be in the bytes that are left`, field);
    return Array.from({ length: count }, read);
  }

  /** @returns {Limit[]} */
  limits() {
    return this.items("limits", () => ({ kind: "Limit", channel: this.count("channel"), next: this.count("next"), limit: this.count("limit") }));
  }

  name() {
    const size = this.byte("name");
    const data = this.data.subarray(this.at, this.at + size);
    if (data.length < size || !size) throw badFrame(`a name of ${size} bytes, of which ${data.length} are there`, "name");
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

/**
 * @param {Uint8Array} data
 * @returns {Parts}
 */
function readParts(data) {
  const reader = new FrameReader(data, 1);
  const end = data.length;
  /** @type {Run[]} */
  const runs = [];
  while (reader.at < end) {
    const channel = reader.count("channel");
    const seq = reader.count("seq");
    const count = reader.count("count");
    if (!count || count * 2 > end - reader.at) throw badFrame(`${count} parts can't be in the ${end - reader.at} bytes that are left`, "count");
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
        }
      } else if (flags & ~LAST) throw badFrame(`flags ${hex(flags)} of a part that is not the first`, "flags");
      const size = reader.count("length");
      const at = reader.at;
      if (flags & 0xc0 || (flags & 0x0c) === 0x0c) throw badFrame(`unknown flags ${hex(flags)}`, "flags");
      if (at + size > end || size > MAX_PART) throw badFrame(`a part of ${size} bytes; ${end - at} are there`, "length");
      if (!(flags & LAST)) {
        if (size < MIN_PART) throw badFrame(`a part of ${size} bytes that is not the last`, "length");
        if (flags & FIRST && total <= size) throw badFrame(`a part of ${size} bytes begins a message of ${total}`, "total");
      }
      parts.push({ kind: "Part", flags, total, number, payload: data.subarray(at, at + size) });
      reader.at = at + size;
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
    if (flags & ~ASK) throw badFrame(`unknown flags ${hex(flags)}`, "flags");
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
  else if (first >> 4 !== FRAME_VERSION) throw badFrame(`version ${first >> 4}, this side speaks ${FRAME_VERSION}`, "version");
  else throw badFrame(`unknown type ${first & 0x0f}`, "type");
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
 * @typedef {{kind: "Join", version: number, room: string, peerId: string, incarnation: string, name: string | null, metadata: Metadata, onConflict: OnConflict, token: string | null, session: string | null, received: number, attempt: number, joinToken: string | null}} Join
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
 * @typedef {{kind: "LinkReport", peerId: string, incarnation: string, state: "new" | "connecting" | "connected" | "disconnected" | "failed" | "closed", iceState: string, path: "direct" | "turn" | "relay" | null, rtt: number | null, reason: string, failure: string, restarts: number, attempts: number, successes: number, failures: number, connectTime: number | null, fallbacks: number, messages: number, bytesSent: number, bytesReceived: number}} LinkReport
 */
/**
 * How these links stand now; of others what was last said holds. No incarnation is told about twice.
 * @typedef {{kind: "Report", links: LinkReport[]}} Report
 */
/**
 * So many counted messages have arrived here in all.
 * @typedef {{kind: "Ack", received: number}} Ack
 */
/**
 * Somebody who has a seat in the room.
 * @typedef {{kind: "Member", peerId: string, incarnation: string, name: string | null, metadata: Metadata}} Member
 */
/**
 * A STUN or TURN server (W3C WebRTC, RTCIceServer).
 * @typedef {{kind: "IceServerInfo", urls: string[], username: string | null, credential: string | null}} IceServerInfo
 */
/**
 * The servers to use from now on, in place of those that an earlier one named.
 * @typedef {{kind: "IceServers", servers: IceServerInfo[], expiresIn: number | null}} IceServers
 */
/**
 * The seat is yours. `resumed`: it is the one you had, and nothing was missed.
 * @typedef {{kind: "Welcome", version: number, room: string, peerId: string, incarnation: string, token: string, seatTimeout: number, session: string | null, resumed: boolean, received: number, members: Member[], forwardWindow: number, reportInterval: number, iceServers: IceServers | null}} Welcome
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
 * @typedef {{kind: "MemberUpdated", peerId: string, incarnation: string, name: string | null, metadata: Metadata}} MemberUpdated
 */
/**
 * A forwarded signal. `sender` (`from` on the wire) and `incarnation` are the relay's word. Counted.
 * @typedef {{kind: "SignalIn", sender: string, incarnation: string, toIncarnation: string, epoch: number, body: string}} SignalIn
 */
/**
 * The relay did not do what was asked. Counted when the client has a seat. `message` is the number
 * of the counted message that is meant, 0 when it was none; `to` the addressee of a signal.
 * @typedef {{kind: "Refused", code: string, text: string, field: string | null, message: number, to: string | null, retryAfter: number | null}} Refused
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
 * @typedef {{kind: "IceCandidate", candidate: string, sdpMid: string | null, sdpMLineIndex: number | null}} IceCandidate
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

/** @typedef {Join | SignalOut | Update | Leave | Ack | Report} ClientMessage */
/** @typedef {Welcome | MemberJoined | MemberLeft | MemberUpdated | SignalIn | Refused | IceServers | Forwarded | Notice | RestartIce | Goodbye | Ack} RelayMessage */
/** @typedef {Offer | Answer | Candidates | Dial | Stale} LinkMessage */
/** @typedef {ClientMessage | RelayMessage | LinkMessage | LinkReport | Member | IceServerInfo | IceCandidate} AnyMessage */

/**
 * @typedef {{is: "string", max: number, min: number, pattern: RegExp | null, words: string}
 *   | {is: "int", max: number}
 *   | {is: "float", max: number}
 *   | {is: "bool"} | {is: "object"} | {is: "raw"}
 *   | {is: "literal", values: readonly string[]}
 *   | {is: "array", of: Type, min: number, max: number}
 *   | {is: "struct", struct: Struct}
 *   | {is: "union", tags: ReadonlyMap<string, Struct>}} Shape
 * @typedef {Shape & {shown: string, nullable: boolean}} Type
 * @typedef {{name: string, wire: string, type: Type, fallback: unknown}} Field
 * @typedef {{kind: string, tag: string | null, asArray: boolean, fields: readonly Field[], places: ReadonlyMap<string, number>, required: number}} Struct
 */

// No control characters, no line or paragraph separators, nothing that turns the direction of text,
// no surrounding white space: a peer id or a name goes into logs and terminals as it is.
const BAD_TEXT = String.raw`\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069`;
// What Python takes for white space, as far as it isn't among those.
const WHITE = String.raw` \xa0\u1680\u2000-\u200a\u202f\u205f\u3000`;
const EDGE = `[^${WHITE}${BAD_TEXT}]`;

/** @type {(words: string, pattern: string | null, max?: number, min?: number) => Type} */
const stringType = (words, pattern, max = Infinity, min = 0) => ({
  is: "string", shown: "str", nullable: false, max, min, words, pattern: pattern === null ? null : new RegExp(`^${pattern}$`, "u"),
});
const label = stringType("without control characters and without white space around it", `${EDGE}([^${BAD_TEXT}]*${EDGE})?`, 128, 1);
const incarnation = stringType("of 8 to 64 letters, digits, - and _", "[A-Za-z0-9_\\-]{8,64}");
const token = stringType("of 16 to 128 letters, digits, - and _", "[A-Za-z0-9_\\-]{16,128}");
const joinToken = stringType(`of 1 to ${MAX_JOIN_TOKEN} printable ASCII characters without spaces`, `[!-~]{1,${MAX_JOIN_TOKEN}}`);
const code = stringType("of 1 to 64 lower-case letters and _", "[a-z_]{1,64}");
const prose = stringType("without control characters", `[^${BAD_TEXT}]*`, MAX_TEXT);
const reasonText = { ...prose, max: MAX_REASON };
const iceUrl = stringType("that begins with stun:, turn: or turns:", `(stun|turns?):${EDGE}+`, 256);
/** @type {(max?: number) => Type} */
const plainText = (max) => stringType("", null, max);
/** @type {(max: number) => Type} */
const whole = (max) => ({ is: "int", shown: "int", nullable: false, max });
const small = whole(2 ** 31 - 1);
const tally = whole(2 ** 53);
/** @type {(max: number) => Type} */
const real = (max) => ({ is: "float", shown: "float", nullable: false, max });
const seconds = real(86400);
/** @type {Type} */
const truth = { is: "bool", shown: "bool", nullable: false };
/** @type {Type} */
const metadataType = { is: "object", shown: "object", nullable: false };
/** @type {Type} */
const raw = { is: "raw", shown: "any", nullable: true };
/** @type {(...values: string[]) => Type} */
const oneOf = (...values) => ({ is: "literal", shown: "str", nullable: false, values });
/** @type {(of: Type, max?: number, min?: number) => Type} */
const list = (of, max = Infinity, min = 0) => ({ is: "array", shown: "array", nullable: false, of, max, min });
/** @type {(struct: Struct) => Type} */
const one = (struct) => ({ is: "struct", shown: struct.asArray ? "array" : "object", nullable: false, struct });
/** @type {(type: Type) => Type} */
const orNull = (type) => ({ ...type, shown: `${type.shown} | null`, nullable: true });

const REQUIRED = Symbol("required");
/** A field: its name here, its type, what it is when it is absent, its name on the wire. */
/** @type {(name: string, type: Type, fallback?: unknown, wire?: string) => Field} */
const field = (name, type, fallback = REQUIRED, wire = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)) => ({
  name, wire, type, fallback,
});

/** @type {(kind: string, tag: string | null, fields?: Field[], asArray?: boolean) => Struct} */
const struct = (kind, tag, fields = [], asArray = false) => ({
  kind, tag, asArray, fields,
  places: new Map(fields.map((each, place) => [each.wire, place])),
  required: fields.filter((each) => each.fallback === REQUIRED).length,
});

const generation = field("generation", small, 0);
const nameOrNull = field("name", orNull(label), null);
const metadataField = field("metadata", metadataType, {});
const STRUCTS = {
  Join: struct("Join", "join", [
    field("version", small), field("room", label), field("peerId", label), field("incarnation", incarnation), nameOrNull, metadataField,
    field("onConflict", oneOf("reject", "takeover", "rename"), "reject"), field("token", orNull(token), null),
    field("session", orNull(token), null), field("received", tally, 0), field("attempt", tally, 0), field("joinToken", orNull(joinToken), null),
  ]),
  SignalOut: struct("SignalOut", "signal", [field("to", label), field("toIncarnation", incarnation), field("epoch", small), field("body", raw)]),
  Update: struct("Update", "update", [nameOrNull, field("metadata", orNull(metadataType), null)]),
  Leave: struct("Leave", "leave"),
  LinkReport: struct("LinkReport", null, [
    field("peerId", label), field("incarnation", incarnation),
    field("state", oneOf("new", "connecting", "connected", "disconnected", "failed", "closed")), field("iceState", code),
    field("path", orNull(oneOf("direct", "turn", "relay")), null), field("rtt", orNull(seconds), null),
    field("reason", reasonText, ""), field("failure", reasonText, ""),
    field("restarts", tally, 0), field("attempts", tally, 0), field("successes", tally, 0), field("failures", tally, 0),
    field("connectTime", orNull(real(Infinity)), null), field("fallbacks", tally, 0), field("messages", tally, 0),
    field("bytesSent", tally, 0), field("bytesReceived", tally, 0),
  ], true),
  Ack: struct("Ack", "ack", [field("received", tally)]),
  Member: struct("Member", null, [field("peerId", label), field("incarnation", incarnation), nameOrNull, metadataField]),
  IceServerInfo: struct("IceServerInfo", null, [
    field("urls", list(iceUrl, 8, 1)), field("username", orNull(plainText(512)), null), field("credential", orNull(plainText(512)), null),
  ]),
  MemberLeft: struct("MemberLeft", "left", [field("peerId", label), field("incarnation", incarnation), field("reason", code)]),
  MemberUpdated: struct("MemberUpdated", "updated", [field("peerId", label), field("incarnation", incarnation), nameOrNull, metadataField]),
  SignalIn: struct("SignalIn", "signal", [
    field("sender", label, REQUIRED, "from"), field("incarnation", incarnation), field("toIncarnation", incarnation),
    field("epoch", small), field("body", raw),
  ]),
  Refused: struct("Refused", "refused", [
    field("code", code), field("text", prose), field("field", orNull(prose), null), field("message", tally, 0),
    field("to", orNull(label), null), field("retryAfter", orNull(seconds), null),
  ]),
  Forwarded: struct("Forwarded", "forwarded", [field("to", label), field("size", tally)]),
  Notice: struct("Notice", "notice", [field("text", prose)]),
  RestartIce: struct("RestartIce", "restart_ice", [field("peerId", orNull(label), null)]),
  Goodbye: struct("Goodbye", "goodbye", [field("reason", code), field("retryAfter", orNull(seconds), null)]),
  Offer: struct("Offer", "offer", [field("sdp", plainText()), generation]),
  Answer: struct("Answer", "answer", [field("sdp", plainText()), generation]),
  IceCandidate: struct("IceCandidate", null, [
    field("candidate", plainText(1024)), field("sdpMid", orNull(plainText(64)), null, "sdpMid"),
    field("sdpMLineIndex", orNull(whole(255)), null, "sdpMLineIndex"),
  ]),
  Dial: struct("Dial", "dial", [field("reason", prose, "")]),
  Stale: struct("Stale", "stale", [field("incarnation", incarnation), field("epoch", small)]),
};
const REPORT = struct("Report", "report", [field("links", list(one(STRUCTS.LinkReport), MAX_REPORTS))]);
const ICE_SERVERS = struct("IceServers", "ice_servers", [
  field("servers", list(one(STRUCTS.IceServerInfo), 16)), field("expiresIn", orNull(seconds), null),
]);
const WELCOME = struct("Welcome", "welcome", [
  field("version", small), field("room", label), field("peerId", label), field("incarnation", incarnation), field("token", token),
  field("seatTimeout", seconds), field("session", orNull(token), null), field("resumed", truth, false), field("received", tally, 0),
  field("members", list(one(STRUCTS.Member)), []), field("forwardWindow", tally, 0), field("reportInterval", seconds, 0),
  field("iceServers", orNull(one(ICE_SERVERS)), null),
]);
const MEMBER_JOINED = struct("MemberJoined", "joined", [field("member", one(STRUCTS.Member))]);
const CANDIDATES = struct("Candidates", "candidates", [
  field("candidates", list(one(STRUCTS.IceCandidate), MAX_CANDIDATES), []), field("end", truth, false), generation,
]);

/** @type {(...structs: Struct[]) => Type} */
const union = (...structs) => ({
  is: "union", shown: "object", nullable: false, tags: new Map(structs.map((each) => [each.tag ?? "", each])),
});
const S = STRUCTS;
const CLIENT_MESSAGE = union(S.Join, S.SignalOut, S.Update, S.Leave, S.Ack, REPORT);
const RELAY_MESSAGE = union(
  WELCOME, MEMBER_JOINED, S.MemberLeft, S.MemberUpdated, S.SignalIn, S.Refused, ICE_SERVERS, S.Forwarded, S.Notice, S.RestartIce, S.Goodbye, S.Ack,
);
const LINK_MESSAGE = union(S.Offer, S.Answer, CANDIDATES, S.Dial, S.Stale);
/** @type {ReadonlyMap<string, Struct>} */
const BY_KIND = new Map([...Object.values(STRUCTS), REPORT, ICE_SERVERS, WELCOME, MEMBER_JOINED, CANDIDATES].map((each) => [each.kind, each]));

/** @param {string} kind */
function structOf(kind) {
  const found = BY_KIND.get(kind);
  if (!found) throw new TypeError(`no message is a ${kind}`);
  return found;
}

/**
 * What a field is when it is absent: objects and arrays each time anew.
 * @param {Field} of
 */
function fallbackOf(of) {
  if (Array.isArray(of.fallback)) return [];
  return typeof of.fallback === "object" && of.fallback !== null ? {} : of.fallback;
}

/**
 * A message of this kind, with its defaults filled in.
 * @template {AnyMessage["kind"]} K
 * @param {K} kind
 * @param {Partial<Extract<AnyMessage, {kind: K}>>} [fields]
 * @returns {Extract<AnyMessage, {kind: K}>}
 */
export function message(kind, fields = {}) {
  /** @type {{[name: string]: unknown}} */
  const given = fields;
  /** @type {{[name: string]: unknown}} */
  const out = { kind };
  for (const each of structOf(kind).fields) {
    const value = given[each.name];
    out[each.name] = value !== undefined ? value : fallbackOf(each);
    if (out[each.name] === REQUIRED) throw new TypeError(`a ${kind} needs ${each.name}`);
  }
  return /** @type {Extract<AnyMessage, {kind: K}>} */ (out);
}

/**
 * The text of one message: JSON without white space.
 * @param {ClientMessage | RelayMessage | LinkMessage} message
 * @returns {string}
 */
export function encode(message) {
  return JSON.stringify(wireForm(structOf(message.kind), message)).replace(BODY_AT_END, () => `,"body":${/** @type {SignalOut} */ (message).body}}`);
}

// A signal's body is JSON already. It is the last of its fields.
const BODY_AT_END = /,"body":null\}$/;

/**
 * @param {Struct} of
 * @param {object} message
 * @returns {unknown}
 */
function wireForm(of, message) {
  /** @type {{[name: string]: any}} */
  const from = message;
  /** @type {{[name: string]: unknown}} */
  const out = of.tag === null ? {} : { type: of.tag };
  for (const { name, wire, type } of of.fields) {
    const value = from[name];
    if (type.is === "raw") out[wire] = null;
    else if (type.is === "struct" && value) out[wire] = wireForm(type.struct, value);
    else if (type.is === "array" && type.of.is === "struct") {
      const item = type.of.struct;
      out[wire] = value.map((/** @type {object} */ each) => wireForm(item, each));
    } else out[wire] = value;
  }
  return of.asArray ? Object.values(out) : out;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const COMMA = 0x2c;
const COLON = 0x3a;
const MINUS = 0x2d;
const PLUS = 0x2b;
const DOT = 0x2e;
const ZERO = 0x30;
const ECHO = 200;

/** @param {number} c */
const isDigit = (c) => c >= 0x30 && c <= 0x39;

/**
 * What is read, and with what it is refused: when it is no JSON, when a value is not as it must be,
 * when it is nested deeper than `deepest`.
 * @typedef {{deepest: number, notJson: (said: string) => ProtocolError, wrong: (said: string, path: string) => ProtocolError, tooDeep: () => ProtocolError}} Source
 */

// What Python's stack allows, about.
const STACK = 900;

/** @type {(who: string) => Source} */
const sourceOf = (who) => ({
  deepest: STACK,
  notJson: (said) => new ProtocolError(`message from ${who} is not JSON: ${said}`, { code: "not_json", field: "$" }),
  wrong: (said, path) =>
    new ProtocolError(`malformed message from ${who}: ${printable(said, ECHO)} (field ${path})`, { code: "malformed", field: path }),
  tooDeep: () =>
    new ProtocolError(`message from ${who} is nested deeper than ${MAX_DEPTH} arrays and objects`, { code: "too_deep", field: "$" }),
});
const CLIENT_SOURCE = sourceOf("the client");
const RELAY_SOURCE = sourceOf("the relay");
const PEER_SOURCE = sourceOf("the peer");
/** @type {Source} */
const VALUE_SOURCE = {
  deepest: MAX_VALUE_DEPTH,
  notJson: (said) => badValue(Kind.JSON, said),
  wrong: (said) => badValue(Kind.JSON, said),
  tooDeep: () =>
    new ProtocolError(`a JSON value is nested deeper than ${MAX_VALUE_DEPTH} arrays and objects`, { code: "too_deep", field: "payload" }),
};

/** Reads JSON (RFC 8259) into what a type says, in one pass, with the errors that Python's decoder has. */
class Scanner {
  #text;
  #source;
  #at = 0;
  #depth = 0;
  /** @type {(string | number)[]} */
  #path = [];
  /** How many arrays and objects were inside each other. */
  deepest = 0;

  /**
   * @param {string} text
   * @param {Source} source
   */
  constructor(text, source) {
    this.#text = text;
    this.#source = source;
  }

  /** Nothing may follow. */
  finish() {
    for (; this.#at < this.#text.length; this.#at++) {
      const c = this.#text.charCodeAt(this.#at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) {
        this.#at++;
        throw this.#malformed("trailing characters");
      }
    }
  }

  #truncated() {
    return this.#source.notJson("Input data was truncated");
  }

  /** @param {string} said */
  #malformed(said) {
    return this.#source.notJson(`JSON is malformed: ${said} (byte ${utf8Length(this.#text.slice(0, this.#at))})`);
  }

  /** @param {string} said */
  #wrong(said) {
    const path = this.#path.map((step) => (typeof step === "string" ? `.${step}` : step < 0 ? "[...]" : `[${step}]`)).join("");
    return this.#source.wrong(said, `$${path}`);
  }

  /**
   * @param {Type} type
   * @param {string} got
   */
  #mismatch(type, got) {
    return this.#wrong(`Expected \`${type.shown}\`, got \`${got}\``);
  }

  /** The next character that is not white space. It is not taken. */
  #peek() {
    for (; ; this.#at++) {
      if (this.#at >= this.#text.length) throw this.#truncated();
      const c = this.#text.charCodeAt(this.#at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return c;
    }
  }

  #enter() {
    this.#at++;
    if (++this.#depth > this.deepest) {
      this.deepest = this.#depth;
      if (this.#depth > this.#source.deepest) throw this.#source.tooDeep();
    }
  }

  /** @param {string} word */
  #word(word) {
    if (this.#text.length - this.#at < word.length) throw this.#truncated();
    if (!this.#text.startsWith(word, this.#at)) throw this.#malformed("invalid character");
    this.#at += word.length;
  }

  /** Passes over a string; returns whether there are escapes in it. */
  #string() {
    const text = this.#text;
    let escaped = false;
    for (let at = this.#at + 1; ; ) {
      const c = text.charCodeAt(at);
      if (c === QUOTE) {
        this.#at = at + 1;
        return escaped;
      }
      if (c >= 0x20 && c !== BACKSLASH) at++;
      else {
        this.#at = at;
        if (at >= text.length) throw this.#truncated();
        if (c !== BACKSLASH) throw this.#malformed("invalid character");
        this.#escape();
        escaped = true;
        at = this.#at;
      }
    }
  }

  #escape() {
    const c = this.#text.charAt(++this.#at);
    if (c === "") throw this.#truncated();
    this.#at++;
    if (c === "u") {
      const first = this.#codeUnit();
      if (first >= 0xdc00 && first <= 0xdfff) throw this.#malformed("invalid utf-16 surrogate pair");
      if (first >= 0xd800 && first <= 0xdbff) {
        if (this.#text.length - this.#at < 6) throw this.#truncated();
        if (!this.#text.startsWith("\\u", this.#at)) throw this.#malformed("unexpected end of escaped utf-16 surrogate pair");
        this.#at += 2;
        const second = this.#codeUnit();
        if (second < 0xdc00 || second > 0xdfff) throw this.#malformed("invalid utf-16 surrogate pair");
      }
    } else if (!'"\\/bfnrt'.includes(c)) throw this.#malformed("invalid escape character in string");
  }

  #codeUnit() {
    if (this.#text.length - this.#at < 4) throw this.#truncated();
    let unit = 0;
    for (const stop = this.#at + 4; this.#at < stop; ) {
      const digit = "0123456789abcdef".indexOf(this.#text.charAt(this.#at++).toLowerCase());
      if (digit < 0) throw this.#malformed("invalid character in unicode escape");
      unit = unit * 16 + digit;
    }
    return unit;
  }

  /** A string, which begins here. */
  #text_() {
    const start = this.#at;
    const escaped = this.#string();
    const text = this.#text.slice(start + 1, this.#at - 1);
    return escaped ? /** @type {string} */ (JSON.parse(`"${text}"`)) : text;
  }

  #digits() {
    const start = this.#at;
    while (isDigit(this.#text.charCodeAt(this.#at))) this.#at++;
    return this.#at > start;
  }

  /** Passes over a number; returns whether it has a fraction or an exponent. */
  #number() {
    const text = this.#text;
    if (text.charCodeAt(this.#at) === MINUS && ++this.#at >= text.length) throw this.#malformed("invalid number");
    if (text.charCodeAt(this.#at) === ZERO) {
      this.#at++;
      if (isDigit(text.charCodeAt(this.#at))) throw this.#malformed("invalid number");
    } else if (!this.#digits()) throw this.#malformed("invalid character");
    let float = false;
    if (text.charCodeAt(this.#at) === DOT) {
      float = true;
      this.#at++;
      if (!this.#digits()) throw this.#malformed("invalid number");
    }
    if ((text.charCodeAt(this.#at) | 0x20) === 0x65) {
      float = true;
      this.#at++;
      const sign = text.charCodeAt(this.#at);
      if (sign === PLUS || sign === MINUS) this.#at++;
      if (!this.#digits()) throw this.#malformed("invalid number");
    }
    return float;
  }

  /**
   * A number, which begins here. Without a type its range is checked, as of a value of any type.
   * @param {Type | null} type
   */
  #numberOf(type) {
    const start = this.#at;
    let float = this.#number();
    const digits = this.#text.slice(start, this.#at);
    const value = Number(digits);
    // Whole numbers that no 64 bits have are taken for floats where whole numbers are not expected.
    const large = !float && Math.abs(value) >= 2 ** 63 && (BigInt(digits.slice(0, 4301)) >= 2n ** 64n || BigInt(digits.slice(0, 4301)) < -(2n ** 63n));
    if (large && (!type || type.is === "int")) {
      if (digits.length > 4300) throw this.#wrong("Integer value out of range");
    } else if (large) float = true;
    if (float && !Number.isFinite(value)) throw this.#wrong("Number out of range");
    if (!type) return value;
    if (type.is === "int" && !float) {
      if (value < 0) throw this.#wrong("Expected `int` >= 0");
      if (value > type.max || (value === type.max && digits.length > 15 && BigInt(digits) > BigInt(type.max))) {
        throw this.#wrong(`Expected \`int\` <= ${type.max}`);
      }
    } else if (type.is === "float") {
      if (value < 0) throw this.#wrong("Expected `float` >= 0.0");
      if (value > type.max) throw this.#wrong(`Expected \`float\` <= ${type.max}.0`);
    } else throw this.#mismatch(type, float ? "float" : "int");
    return value + 0;
  }

  /**
   * Passes over a value, whatever it is. `checked`: its numbers are in range, as for a value that
   * is going to be decoded; the place of one that isn't is named.
   * @param {boolean} checked
   */
  skip(checked) {
    const floor = this.#path.length;
    /** The arrays and objects that are open: -1 is an object, else the number of the item. */
    const path = this.#path;
    for (;;) {
      let c = this.#peek();
      if (c === OPEN_ARRAY || c === OPEN_OBJECT) {
        this.#enter();
        path.push(c === OPEN_ARRAY ? 0 : -1);
        const next = this.#peek();
        if (next === c + 2) {
          this.#at++;
          this.#depth--;
          path.pop();
        } else {
          if (c === OPEN_OBJECT) this.#key(next, checked);
          continue;
        }
      } else if (c === QUOTE) this.#string();
      else if (c === 0x6e) this.#word("null");
      else if (c === 0x74) this.#word("true");
      else if (c === 0x66) this.#word("false");
      else if (checked) this.#numberOf(null);
      else this.#number();
      for (;;) {
        if (path.length === floor) return;
        c = this.#peek();
        const place = /** @type {number} */ (path[path.length - 1]);
        if (c === COMMA) {
          this.#at++;
          c = this.#peek();
          if (place < 0) this.#key(c, checked);
          else {
            if (c === CLOSE_ARRAY) throw this.#malformed("trailing comma in array");
            path[path.length - 1] = place + 1;
          }
          break;
        }
        if (c !== (place < 0 ? CLOSE_OBJECT : CLOSE_ARRAY)) throw this.#malformed(place < 0 ? "expected ',' or '}'" : "expected ',' or ']'");
        this.#at++;
        this.#depth--;
        path.pop();
      }
    }
  }

  /**
   * Passes over a key and its colon.
   * @param {number} c the character that it begins with
   * @param {boolean} checked
   */
  #key(c, checked) {
    if (c === CLOSE_OBJECT) throw this.#malformed("trailing comma in object");
    if (c !== QUOTE) throw this.#malformed(checked ? "object keys must be strings" : "expected '\"'");
    this.#string();
    this.#colon();
  }

  #colon() {
    if (this.#peek() !== COLON) throw this.#malformed("expected ':'");
    this.#at++;
  }

  /**
   * A value of this type.
   * @param {Type} type
   * @returns {unknown}
   */
  value(type) {
    const c = this.#peek();
    if (type.is === "raw") {
      const start = this.#at;
      this.skip(false);
      return this.#text.slice(start, this.#at);
    }
    switch (c) {
      case 0x6e:
        this.#word("null");
        if (type.nullable) return null;
        throw this.#mismatch(type, "null");
      case 0x74:
        this.#word("true");
        if (type.is === "bool") return true;
        throw this.#mismatch(type, "bool");
      case 0x66:
        this.#word("false");
        if (type.is === "bool") return false;
        throw this.#mismatch(type, "bool");
      case OPEN_ARRAY:
        if (type.is === "array") return this.#array(type);
        if (type.is === "struct" && type.struct.asArray) return this.#structArray(type.struct);
        throw this.#mismatch(type, "array");
      case OPEN_OBJECT:
        if (type.is === "object") {
          const start = this.#at;
          this.skip(true);
          return JSON.parse(this.#text.slice(start, this.#at));
        }
        if (type.is === "union") return this.#union(type.tags);
        if (type.is === "struct" && !type.struct.asArray) {
          this.#enter();
          return this.#struct(type.struct, true);
        }
        throw this.#mismatch(type, "object");
      case QUOTE:
        return this.#stringOf(type);
      default:
        return this.#numberOf(type);
    }
  }

  /** @param {Type} type */
  #stringOf(type) {
    const text = this.#text_();
    if (type.is === "literal") {
      if (!type.values.includes(text)) throw this.#wrong(`Invalid enum value '${text}'`);
      return text;
    }
    if (type.is !== "string") throw this.#mismatch(type, "str");
    if (text.length < type.min) throw this.#wrong(`Expected \`str\` of length >= ${type.min}`);
    // Characters are code points; there are as many code units at least.
    if (text.length > type.max && [...text].length > type.max) throw this.#wrong(`Expected \`str\` of length <= ${type.max}`);
    if (type.pattern && !type.pattern.test(text)) throw this.#wrong(`Expected \`str\` ${type.words}`);
    return text;
  }

  /**
   * Whether there is another item of an array or object, of which this is the first or not. It is
   * not taken.
   * @param {boolean} first
   * @param {number} close
   */
  #more(first, close) {
    let c = this.#peek();
    if (c === close) {
      this.#at++;
      this.#depth--;
      return false;
    }
    if (!first) {
      if (c !== COMMA) throw this.#malformed(close === CLOSE_ARRAY ? "expected ',' or ']'" : "expected ',' or '}'");
      this.#at++;
      c = this.#peek();
      if (c === close) throw this.#malformed(close === CLOSE_ARRAY ? "trailing comma in array" : "trailing comma in object");
    }
    if (close === CLOSE_OBJECT && c !== QUOTE) throw this.#malformed("object keys must be strings");
    return true;
  }

  /** @param {Type & {is: "array"}} type */
  #array(type) {
    this.#enter();
    const out = [];
    const path = this.#path;
    path.push(0);
    while (this.#more(!out.length, CLOSE_ARRAY)) {
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
    this.#enter();
    /** @type {{[name: string]: unknown}} */
    const out = { kind: of.kind };
    const path = this.#path;
    let count = 0;
    path.push(0);
    for (; this.#more(!count, CLOSE_ARRAY); count++) {
      path[path.length - 1] = count;
      if (count < of.fields.length) out[of.fields[count].name] = this.value(of.fields[count].type);
      else this.skip(false);
    }
    path.pop();
    if (count < of.required) throw this.#wrong(`Expected \`array\` of at least length ${of.required}, got ${count}`);
    for (const each of of.fields.slice(count)) out[each.name] = fallbackOf(each);
    return out;
  }

  /**
   * The fields of an object that was entered.
   * @param {Struct} of
   * @param {boolean} first whether none of them was taken
   */
  #struct(of, first) {
    /** @type {unknown[]} */
    const values = new Array(of.fields.length).fill(undefined);
    const path = this.#path;
    path.push("");
    for (; this.#more(first, CLOSE_OBJECT); first = false) {
      const key = this.#text_();
      this.#colon();
      const place = of.places.get(key);
      if (place !== undefined) {
        path[path.length - 1] = key;
        values[place] = this.value(of.fields[place].type);
      } else if (of.tag !== null && key === "type") {
        const tag = this.#tag();
        if (tag !== of.tag) throw this.#wrong(`Invalid value '${tag}'`);
      } else this.skip(false);
    }
    path.pop();
    /** @type {{[name: string]: unknown}} */
    const out = { kind: of.kind };
    of.fields.forEach((each, place) => {
      const value = values[place] === undefined ? fallbackOf(each) : values[place];
      if (value === REQUIRED) {
        path.push(each.wire);
        throw this.#wrong(`Object missing required field \`${each.wire}\``);
      }
      out[each.name] = value;
    });
    return out;
  }

  /** The text of a `type` field. */
  #tag() {
    this.#path[this.#path.length - 1] = "type";
    if (this.#peek() === QUOTE) return this.#text_();
    this.skip(false);
    this.#path.length = this.#path.lastIndexOf("type") + 1;
    throw this.#wrong("Expected `str`");
  }

  /** @param {ReadonlyMap<string, Struct>} tags */
  #union(tags) {
    this.#enter();
    const start = this.#at;
    this.#path.push("type");
    for (let first = true; this.#more(first, CLOSE_OBJECT); first = false) {
      const key = this.#text_();
      this.#colon();
      if (key !== "type") {
        this.skip(false);
        continue;
      }
      const tag = this.#tag();
      const of = tags.get(tag);
      if (!of) throw this.#wrong(`Invalid value '${tag}'`);
      this.#path.pop();
      // What came before its type is read again, as what it is.
      if (!first) this.#at = start;
      return this.#struct(of, !first);
    }
    throw this.#wrong("Object missing required field `type`");
  }
}

/**
 * @param {Type} type
 * @param {string | Uint8Array} data
 * @param {Source} source
 * @returns {{read: unknown, deepest: number}}
 */
function readMessage(type, data, source) {
  let text;
  try {
    text = typeof data === "string" ? data : utf8Decoder.decode(data);
  } catch {
    throw source.notJson("it is not UTF-8");
  }
  if (typeof data === "string" && LONE_SURROGATE.test(text)) throw source.notJson("it is not UTF-8");
  const scanner = new Scanner(text, source);
  const read = scanner.value(type);
  scanner.finish();
  return { read, deepest: scanner.deepest };
}

/**
 * At most `limit` characters of `text`, each fit for a log, a terminal and the wire.
 * @param {string} text
 * @param {number} [limit]
 */
export function printable(text, limit = MAX_TEXT) {
  return Array.from(text.slice(0, 2 * limit)).slice(0, limit).map((each) => (isPrintable(each) ? each : "\ufffd")).join("");
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
  const { read, deepest } = readMessage(CLIENT_MESSAGE, data, CLIENT_SOURCE);
  const message = /** @type {ClientMessage} */ (read);
  if (deepest > MAX_DEPTH) throw CLIENT_SOURCE.tooDeep();
  if (message.kind === "Join") {
    if (message.version !== VERSION) {
      throw new ProtocolError(`this relay speaks version ${VERSION} of the protocol, the client ${message.version}`, {
        code: "unsupported_version",
        field: "$.version",
      });
    }
    checkMetadata(message.metadata);
  } else if (message.kind === "Update") {
    if (message.metadata) checkMetadata(message.metadata);
  } else if (message.kind === "Report") checkLinks(message.links);
  return message;
}

/**
 * What the types don't tell of a report.
 * @param {readonly LinkReport[]} links
 */
function checkLinks(links) {
  if (new Set(links.map((link) => `${link.incarnation} ${link.peerId}`)).size < links.length) {
    throw CLIENT_SOURCE.wrong("it tells twice about the same incarnation", "$.links");
  }
  links.forEach((link, number) => {
    for (const [place, text] of /** @type {const} */ ([[6, link.reason], [7, link.failure]])) {
      if (utf8Length(text) > MAX_REASON) {
        throw CLIENT_SOURCE.wrong(`Expected \`str\` of at most ${MAX_REASON} bytes of UTF-8`, `$.links[${number}][${place}]`);
      }
    }
  });
}

/**
 * What the relay says to a client. Throws `ProtocolError` and nothing else.
 * @param {string | Uint8Array} data
 * @returns {RelayMessage}
 */
export function decodeRelay(data) {
  return /** @type {RelayMessage} */ (readMessage(RELAY_MESSAGE, data, RELAY_SOURCE).read);
}

/**
 * What one peer says to another inside a signal. Throws `ProtocolError` and nothing else.
 * @param {string | Uint8Array} body
 * @returns {LinkMessage}
 */
export function decodeLink(body) {
  const message = /** @type {LinkMessage} */ (readMessage(LINK_MESSAGE, body, PEER_SOURCE).read);
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
    throw new ProtocolError(`metadata has ${size} bytes of JSON, the limit is ${MAX_METADATA}`, { code: "too_large", field: "$.metadata" });
  }
}

const SDP_NEEDS = [
  ["m=application ", "a data channel section"],
  ["a=ice-ufrag:", "ICE credentials"],
  ["a=ice-pwd:", "ICE credentials"],
  ["a=fingerprint:", "a DTLS fingerprint"],
];
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
  const bad = (/** @type {string} */ text, code = "bad_sdp") => new ProtocolError(`the session description ${text}`, { code, field: "$.sdp" });
  const size = sdp.length > MAX_SDP ? [...sdp].length : sdp.length;
  if (size > MAX_SDP) throw bad(`has ${size} characters, the limit is ${MAX_SDP}`, "too_large");
  const lines = linesOf(sdp);
  lines.forEach((line, number) => {
    if (!SDP_LINE.test(line)) {
      throw new ProtocolError(
        `line ${number + 1} of the session description is not of the form <type>=<value>: ${repr([...line].slice(0, 40).join(""))}`,
        { code: "bad_sdp", field: "$.sdp" },
      );
    }
  });
  if (lines[0] !== "v=0") throw bad("does not begin with v=0");
  const count = countCandidates(sdp);
  if (count > MAX_CANDIDATES) throw bad(`has ${count} candidates, the limit is ${MAX_CANDIDATES}`, "too_many_candidates");
  for (const [prefix, what] of SDP_NEEDS) {
    if (!lines.some((line) => line.startsWith(prefix))) throw bad(`lacks ${what} (no line ${repr(prefix)})`);
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
  if (frame.length > MAX_FORWARD) throw new MessageTooLarge(`the frame has ${frame.length} bytes, the limit is ${MAX_FORWARD}`);
  const name = utf8Encoder.encode(peerId);
  const number = utf8Encoder.encode(incarnation);
  return joined([Uint8Array.of(MARK, name.length >> 8, name.length & 0xff), name, Uint8Array.of(number.length), number, frame]);
}

/**
 * A forwarded frame and whose it is. Throws `ProtocolError` and nothing else.
 * @param {Uint8Array} data
 * @returns {FrameIn}
 */
export function decodeForward(data) {
  const bad = (/** @type {string} */ what) => new ProtocolError(`a message with data ${what}`, { code: "bad_forward" });
  if (data[0] !== MARK) throw bad("must begin with the byte 1");
  const middle = 3 + ((data[1] << 8) | data[2]);
  const start = middle + 1 + data[middle];
  if (data.length < 3 || !(start >= 0)) throw bad("is cut off in the names before its frame");
  if (start >= data.length || data.length - start > MAX_FORWARD) throw bad(`must have a frame of 1 to ${MAX_FORWARD} bytes behind its names`);
  let sender;
  let number;
  try {
    sender = utf8Decoder.decode(data.subarray(3, middle));
    number = utf8Decoder.decode(data.subarray(middle + 1, start));
  } catch {
    sender = number = "";
  }
  if (!fits(label, sender) || !fits(incarnation, number)) throw bad("does not begin with a peer id and an incarnation");
  return { kind: "FrameIn", sender, incarnation: number, data: data.subarray(start) };
}

/**
 * @param {Type} type
 * @param {string} text
 */
function fits(type, text) {
  return type.is === "string" && text.length >= type.min && [...text].length <= type.max && (type.pattern?.test(text) ?? true);
}
