import { createHmac, timingSafeEqual } from "node:crypto";

/**
 * Returns the event's id; throws where a delivery can't be trusted. `body` is the
 * raw bytes as they came, `secret` the whole text, `whsec_` included.
 */
export function verify(headers, body, secret, now = Date.now() / 1000) {
  const name = Object.keys(headers).find((n) => n.toLowerCase() === "x-webhook-signature");
  const items = String(headers[name] ?? "").split(",").map((item) => {
    const [, key, value] = /^\s*([^=]*)=(.*?)\s*$/.exec(item) ?? [];
    return { key, value };
  });
  const all = (...keys) => items.filter((i) => keys.includes(i.key)).map((i) => i.value);
  const [t, eventId] = [all("t")[0], all("e")[0]];
  const once = all("t").length === 1 && all("e").length === 1 && !all(undefined).length;
  if (!once || !/^[0-9]{1,12}$/.test(t) || !/^[^.]+$/.test(eventId)) {
    throw new Error("X-Webhook-Signature is missing or malformed");
  }
  const age = now - Number(t);
  if (age > 300 || age < -30) throw new Error("signed too long ago, or in the future");
  const expected = createHmac("sha256", secret).update(`${t}.${eventId}.`).update(body).digest();
  // During a rotation two secrets sign: v1n= is the new one's, v1= the old one's.
  const digests = all("v1", "v1n").filter((hex) => /^[0-9a-f]{64}$/i.test(hex));
  if (!digests.some((hex) => timingSafeEqual(expected, Buffer.from(hex, "hex")))) {
    throw new Error("no signature matches");
  }
  return eventId;
}
