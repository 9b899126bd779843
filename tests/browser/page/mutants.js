// What Python says to damaged messages, frames and values (tests/browser/mutants.py), and whether the
// client's codec says the same; in a page or under node.

import * as codec from "../../../meshpeer/relay/web/client/codec.js";
import { described, hex, isSame } from "./vectors.js";

/** A message, of which must be written what is read as the same, as far as JSON can say it. */
function message(decode, data) {
  const read = decode(data);
  if (!isSame(decode(codec.encode(read)), JSON.parse(JSON.stringify(read)))) {
    throw new Error("what is written of it is read as something else");
  }
  return read;
}

function value(kind, data) {
  codec.checkValue(kind, data);
  return codec.decodeValue(kind, data);
}

function forward(data) {
  const frame = codec.decodeForward(data);
  return { ...frame, data: hex(frame.data) };
}

const SAID = {
  client: (data) => message(codec.decodeClient, data),
  relay: (data) => message(codec.decodeRelay, data),
  peer: (data) => message(codec.decodeLink, data),
  frame: (data) => described(codec.decodeFrame(data)),
  forward,
  text: (data) => value(codec.Kind.TEXT, data),
  json: (data) => value(codec.Kind.JSON, data),
};

/**
 * How Python says that something is no UTF-8 is its own, and so is what it knows of Unicode, and how
 * long a number is when it writes it: 100.0 is 100 here.
 */
const comparable = (text) =>
  text
    .replace(/( \()?(it is not UTF-8|is not UTF-8|'utf-8' codec can't).*/s, "")
    .replace(/^metadata has \d+ bytes/, "metadata has many bytes")
    .replace(/[^ -~]/gu, "\ufffd");

/**
 * What is said to it otherwise than by Python; null when it is the same.
 * @param {string} line
 * @returns {string | null}
 */
export function checkMutant(line) {
  const { is, data, says, error } = JSON.parse(line);
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  let got;
  try {
    got = { says: SAID[is](bytes) };
  } catch (thrown) {
    if (!(thrown instanceof codec.ProtocolError)) return `${thrown.stack}`;
    got = { error: { code: thrown.code, field: thrown.field, text: comparable(thrown.message) } };
  }
  const expected = error ? { error: { ...error, text: comparable(error.text) } } : { says };
  return isSame(got, expected)
    ? null
    : `${is} ${atob(data).slice(0, 1000)}\n  is ${show(got)}\n  not ${show(expected)}`;
}

const show = (said) => JSON.stringify(said).slice(0, 500);
