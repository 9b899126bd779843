// Figures and states in words. What nobody measured is a dash, never a zero.

export const NONE = "–";

const whole = new Intl.NumberFormat("en");
const times = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minutes = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const known = (value) => value !== null && value !== undefined;

export const count = (value) => (known(value) ? whole.format(value) : NONE);

/** "1 peer", "3 peers" */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A share from 0 to 1. Only all of it is 100 %, and only nothing of it 0 %. */
export function percent(share) {
  if (!known(share)) return NONE;
  const value = share * 100;
  if (value > 99.9 && value < 100) return "99.9 %";
  if (value > 0 && value < 0.1) return "0.1 %";
  return `${Number(value.toFixed(value < 99 && value >= 10 ? 0 : 1))} %`;
}

/** Seconds that somebody waits: "12 ms", "1.3 s". */
export function short(seconds) {
  if (!known(seconds)) return NONE;
  const ms = seconds * 1000;
  if (ms < 9.95) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return long(seconds);
}

/** Seconds that pass: "45 s", "3 min", "2 h 5 min", "4 d 1 h". */
export function long(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return `${m} min`;
  const h = Math.floor(m / 60);
  if (h < 24) return m % 60 ? `${h} h ${m % 60} min` : `${h} h`;
  return h % 24 ? `${Math.floor(h / 24)} d ${h % 24} h` : `${h / 24} d`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  if (value < 1000) return `${value} B`;
  let size = value;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    size /= 1000;
    if (size < 999.5 || unit === "TB") return `${size < 9.95 ? size.toFixed(1) : count(Math.round(size))} ${unit}`;
  }
}

export const time = (unix) => times.format(unix * 1000);
export const minute = (unix) => minutes.format(unix * 1000);
export const date = (unix) => dates.format(unix * 1000);

const PATHS = { direct: "direct", turn: "TURN", relay: "relay" };
export const pathName = (path) => (known(path) ? (PATHS[path] ?? path) : "no path");
export const stateName = (state) => state.replaceAll("_", " ");

const KINDS = { restarted_ice: "ICE restart" };
export const kindName = (kind) => KINDS[kind] ?? kind.replaceAll("_", " ");
