// The vectors of tests/vectors against the client's codec, in a page or under node: good ones must
// say what they say there, and be written as they are there; bad ones must be refused with the same
// code and field.

import * as codec from "../../../meshpeer/relay/web/client/codec.js";

const DECODERS = { client: codec.decodeClient, relay: codec.decodeRelay, peer: codec.decodeLink };
const ROLES = Object.keys(codec.Role);
const KINDS = Object.keys(codec.Kind);

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const unhex = (digits) => Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const utf8 = (text) => new TextEncoder().encode(text);

/** So many times the bytes, then so many of 0. */
function repeated(digits, times = 1, zeros = 0) {
  const once = unhex(digits);
  const out = new Uint8Array(once.length * times + zeros);
  for (let at = 0; at < once.length * times; at += once.length || 1) out.set(once, at);
  return out;
}

/** Whether they are the same as JSON, whatever the order of an object's fields. */
export function isSame(one, other) {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return one === other;
  const keys = Object.keys(one);
  return (
    Array.isArray(one) === Array.isArray(other) &&
    keys.length === Object.keys(other).length &&
    keys.every((key) => Object.hasOwn(other, key) && isSame(one[key], other[key]))
  );
}

function expect(what, got, expected) {
  if (!isSame(got, expected)) throw new Error(`${what} is ${JSON.stringify(got)}, not ${JSON.stringify(expected)}`);
}

/** With what `act` refuses its input. */
function refusal(act) {
  let got;
  try {
    got = act();
  } catch (error) {
    if (error instanceof codec.ProtocolError) return { code: error.code, field: error.field };
    throw error;
  }
  throw new Error(`it is taken, as ${JSON.stringify(got)}`);
}

function signaling({ from, text, hex: digits, decodes, error }) {
  const decode = DECODERS[from];
  for (const data of text === undefined ? [unhex(digits)] : [text, utf8(text)]) {
    if (error) {
      expect(
        "the refusal",
        refusal(() => decode(data)),
        error,
      );
      continue;
    }
    const message = decode(data);
    const wire = codec.encode(message);
    expect("what is written", JSON.parse(wire), decodes);
    expect("what is read of that", decode(wire), message);
  }
}

function forward({ hex: digits, decodes, error }) {
  const data = unhex(digits);
  if (error) {
    expect("the code", refusal(() => codec.decodeForward(data)).code, error.code);
    return;
  }
  const { kind, sender, incarnation, data: frame } = codec.decodeForward(data);
  expect("what is read", { kind, peer_id: sender, incarnation, frame: hex(frame) }, { kind: "FrameIn", ...decodes });
  expect("what is written", hex(codec.encodeForward(sender, incarnation, frame)), digits);
}

function describedPart(part) {
  const first = (part.flags & codec.FIRST) !== 0;
  const last = (part.flags & codec.LAST) !== 0;
  const role = codec.partRole(part);
  return {
    first,
    last,
    ...(first && { kind: KINDS[codec.partKind(part)].toLowerCase(), role: ROLES[role].toLowerCase() }),
    ...(first && !last && { total: part.total }),
    ...(role !== codec.Role.PLAIN && { number: part.number }),
    payload: hex(part.payload),
  };
}

/** A frame as the vectors have it. */
export function described(frame) {
  const type = frame.kind.toLowerCase();
  switch (frame.kind) {
    case "Parts":
      return {
        type,
        runs: frame.runs.map(({ channel, seq, parts }) => ({
          channel,
          seq,
          parts: parts.map(describedPart),
        })),
      };
    case "Resume": {
      const limits = frame.limits.map(({ channel, next, limit }) => ({ channel, next, limit }));
      const { round, ask, maxMessage, maxChannels, window } = frame;
      return { type, round, ask, max_message: maxMessage, max_channels: maxChannels, window, limits };
    }
    case "Ack":
      return { type, limits: frame.limits.map(({ channel, next, limit }) => ({ channel, next, limit })) };
    case "Start":
      return {
        type,
        round: frame.round,
        channels: frame.channels.map(({ channel, seq, offset, name }) => ({ channel, seq, offset, name })),
      };
    case "Open":
      return { type, channel: frame.channel, name: frame.name };
    case "Bye":
      return { type };
    default:
      return { type, nonce: frame.nonce };
  }
}

/** A whole number, as docs/protocol.md has it. */
function varint(value) {
  return value < 128 ? [value] : [(value % 128) + 128, ...varint(Math.floor(value / 128))];
}

/** The bytes of a part that was read, as docs/protocol.md has them. */
function partBytes({ flags, total, number, payload }) {
  const out = [flags];
  if (flags & codec.FIRST && !(flags & codec.LAST)) out.push(...varint(total));
  if (number) out.push(...varint(number));
  return Uint8Array.from([...out, ...varint(payload.length), ...payload]);
}

function frameBytes(frame) {
  if (frame.kind !== "Parts") return codec.encodeFrame(frame);
  return codec.encodeParts(
    frame.runs.flatMap(({ channel, seq, parts }) => [
      codec.runHead(channel, seq, parts.length),
      ...parts.map(partBytes),
    ]),
  );
}

function goodFrame({ hex: digits, frame }) {
  const read = codec.decodeFrame(unhex(digits));
  expect("what is read", described(read), frame);
  expect("what is written", hex(frameBytes(read)), digits);
}

function badFrame({ hex: digits, zeros, code, field }) {
  expect(
    "the refusal",
    refusal(() => codec.decodeFrame(repeated(digits, 1, zeros))),
    { code, field },
  );
}

function cutMessage({ kind, role, number, hex: digits, times, parts }) {
  const payload = repeated(digits, times);
  const [kindValue, roleValue] = [codec.Kind[kind.toUpperCase()], codec.Role[role.toUpperCase()]];
  const cut = codec.encodeMessage(kindValue, payload, roleValue, number);
  let at = 0;
  const expected = parts.map(({ head, payload: size, charge }) => {
    at += size;
    return [head + hex(payload.subarray(at - size, at)), charge];
  });
  expect(
    "what it is cut into",
    cut.map(([part, charge]) => [hex(part), charge]),
    expected,
  );
  const encoded = cut.map(([part]) => part);
  expect(
    "where it ends",
    encoded.map(codec.isLast),
    parts.map((_, place) => place === parts.length - 1),
  );
  expect("the number of the request", codec.requestNumber(encoded), role === "request" ? number : 0);
  const [kindRead, roleRead, payloadRead] = codec.decodeMessage(encoded);
  expect("what it was", [kindRead, roleRead, hex(payloadRead)], [kindValue, roleValue, hex(payload)]);
}

function goodValue({ kind, payload, value }) {
  const given = kind === "bytes" ? unhex(value) : value;
  const [kindValue, bytes] = codec.encodeValue(given);
  expect("what is written", [kindValue, hex(bytes)], [codec.Kind[kind.toUpperCase()], payload]);
  codec.checkValue(kindValue, bytes);
  const read = codec.decodeValue(kindValue, bytes);
  expect("what is read", kind === "bytes" ? hex(read) : read, value);
}

function badValue({ kind, payload, times, code, field }) {
  const value = codec.Kind[kind.toUpperCase()];
  expect(
    "the refusal",
    refusal(() => codec.checkValue(value, repeated(payload, times))),
    { code, field },
  );
}

/**
 * What is wrong, a line each: nothing, when all is well. `vectors` has what is in each of the files.
 * @param {{signaling: object[], forward: object[], frames: {[list: string]: object[]}}} vectors
 * @returns {{checked: number, failures: string[]}}
 */
export function checkVectors(vectors) {
  const { good, bad, messages, values, bad_values: badValues } = vectors.frames;
  const failures = [];
  let checked = 0;
  for (const [list, entries, check] of [
    ["signaling", vectors.signaling, signaling],
    ["forward", vectors.forward, forward],
    ["frames, good", good, goodFrame],
    ["frames, bad", bad, badFrame],
    ["frames, messages", messages, cutMessage],
    ["frames, values", values, goodValue],
    ["frames, bad values", badValues, badValue],
  ]) {
    if (!entries?.length) failures.push(`${list}: there are none`);
    for (const entry of entries ?? []) {
      checked++;
      try {
        check(entry);
      } catch (error) {
        failures.push(`${list}: ${entry.name}: ${error.message}`);
      }
    }
  }
  return { checked, failures };
}
