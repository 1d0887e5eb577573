// Numbers, lengths of time and dates as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** A count: 1,234,567. */
export function count(value) {
  return value === undefined || value === null ? "–" : whole.format(value);
}

/** A rate for which three digits are enough: 1.23 k, 45.6 M. */
export function rate(value) {
  if (value === undefined || value === null) return "–";
  if (value >= 1e9) return `${short.format(value / 1e9)} G`;
  if (value >= 1e6) return `${short.format(value / 1e6)} M`;
  if (value >= 1e4) return `${short.format(value / 1e3)} k`;
  return value >= 100 ? whole.format(value) : short.format(Math.round(value * 100) / 100);
}

/** Bytes: 12.3 MiB. */
export function bytes(value) {
  if (value === undefined || value === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${short.format(value)} ${units[at]}`;
}

/** A length of time: 4.2 s, 3 min 20 s, 5 h 12 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${short.format(Math.max(1, seconds * 1000))} ms`;
  if (seconds < 60) return `${short.format(seconds)} s`;
  const s = Math.floor(seconds);
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

/** A moment in the zone of whoever reads: 14:03:07. */
export function time(date) {
  return date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

/** The same with the date, unless it is today: 2026-03-01 14:03:07. */
export function moment(date) {
  if (date.toDateString() === new Date().toDateString()) return time(date);
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time(date)}`;
}
