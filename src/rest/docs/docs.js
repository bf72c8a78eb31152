// Draws the API reference from /openapi.json. Everything is put in as text,
// never as markup.
"use strict";

const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
};

/** Text with `code` in backquotes. */
const prose = (text) =>
  text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

const paragraphs = (text) =>
  (text || "").split("\n\n").filter(Boolean).map((p) => el("p", {}, ...prose(p)));

const start = (api) => {
  const resolve = (thing) => {
    if (!thing || !thing.$ref) return thing;
    const found = thing.$ref.slice(2).split("/").reduce((at, key) => at && at[key], api);
    return { ...found, name: thing.$ref.split("/").pop() };
  };

  const typeOf = (schema) => {
    const s = resolve(schema) || {};
    if (s.type === "array") return `list of ${typeOf(s.items)}`;
    if (s.enum) return s.enum.map(String).join(" | ");
    if (s.additionalProperties && typeof s.additionalProperties === "object") {
      return `map of ${typeOf(s.additionalProperties)}`;
    }
    const type = Array.isArray(s.type) ? s.type.join(" or ") : s.type;
    return s.name && s.properties ? s.name : [type || "any", s.format].filter(Boolean).join(", ");
  };

  /** The schema whose fields a field has: its own, its items' or its values'. */
  const inner = (schema) => {
    const s = resolve(schema) || {};
    if (s.type === "array") return inner(s.items);
    if (s.properties) return s;
    const values = s.additionalProperties;
    return values && typeof values === "object" ? inner(values) : null;
  };

  const fields = (schema, seen = []) => {
    const s = inner(schema);
    if (!s || !Object.keys(s.properties).length) return el("p", { class: "quiet" }, "No fields.");
    const rows = Object.entries(s.properties).map(([name, field]) => {
      const own = inner(field);
      const deeper = own && !seen.includes(own.name)
        ? el("details", {}, el("summary", {}, own.name || "fields"),
            el("div", { class: "nested" }, fields(field, [...seen, own.name])))
        : null;
      const needed = (s.required || []).includes(name) ? " (required)" : "";
      const described = resolve(field).description;
      const told = field.description || described || "";
      return el("tr", {}, el("td", {}, name), el("td", {}, typeOf(field) + needed),
        el("td", {}, ...prose(told), deeper));
    });
    return el("table", {}, el("tbody", {}, ...rows));
  };

  /** A body to begin with: what the operation's example is, else what is required. */
  const sample = (schema, depth = 0) => {
    const s = resolve(schema) || {};
    if (s.example !== undefined) return s.example;
    if (s.enum) return s.enum.find((v) => !String(v).endsWith("UNSPECIFIED"));
    if (s.type === "array") return depth > 2 ? [] : [sample(s.items, depth + 1)];
    if (s.properties && depth < 2) {
      const wanted = Object.keys(s.properties).filter((n) => !/^(tenant|update_mask)$/.test(n));
      return Object.fromEntries(wanted.slice(0, 6).map((n) => [n, sample(s.properties[n], depth + 1)]));
    }
    const type = Array.isArray(s.type) ? s.type[0] : s.type;
    if (type === "boolean") return true;
    if (type === "integer" || type === "number") return 1;
    return type === "string" ? "" : {};
  };

  const key = document.getElementById("key");
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

  const tryIt = (method, path, operation, parameters, bodySchema) => {
    const inputs = parameters.map((p) => {
      const input = el("input", { spellcheck: "false" });
      return { p, input, label: el("label", {}, `${p.name}${p.in === "path" ? " (in the path)" : ""}`, input) };
    });
    const body = bodySchema && el("textarea", { spellcheck: "false", "aria-label": "Body" });
    if (body) body.value = JSON.stringify(sample(bodySchema), null, 2);
    const curl = el("pre", {});
    const answer = el("div", { "aria-live": "polite" });
    const target = () => {
      let at = path;
      const query = new URLSearchParams();
      for (const { p, input } of inputs) {
        if (p.in === "path") at = at.replace(`{${p.name}}`, encodeURIComponent(input.value || `{${p.name}}`));
        else if (p.in === "query" && input.value) query.set(p.name, input.value);
      }
      const text = query.toString();
      return text ? `${at}?${text}` : at;
    };
    const headers = () => {
      const set = {};
      if (key.value) set.Authorization = `Bearer ${key.value}`;
      if (body) set["Content-Type"] = "application/json";
      for (const { p, input } of inputs) if (p.in === "header" && input.value) set[p.name] = input.value;
      return set;
    };
    const shown = () => {
      const parts = [`curl -s -X ${method} ${quoted(location.origin + target())}`];
      const set = headers();
      // A key is not put where it could be copied with the rest by mistake.
      if (set.Authorization) set.Authorization = "Bearer $KEY";
      for (const [name, value] of Object.entries(set)) {
        parts.push(`-H ${name === "Authorization" ? `"${name}: ${value}"` : quoted(`${name}: ${value}`)}`);
      }
      if (body && body.value) parts.push(`-d ${quoted(body.value.replace(/\s*\n\s*/g, " "))}`);
      curl.textContent = parts.join(" \\\n  ");
    };
    const send = async () => {
      answer.replaceChildren("…");
      const began = performance.now();
      try {
        const response = await fetch(target(), { method, headers: headers(), body: body ? body.value : undefined });
        const text = await response.text();
        let pretty = text;
        try { pretty = JSON.stringify(JSON.parse(text), null, 2); } catch { /* it is no JSON */ }
        const limits = ["x-request-id", "x-ratelimit-remaining", "retry-after"]
          .filter((n) => response.headers.get(n)).map((n) => `${n}: ${response.headers.get(n)}`);
        answer.replaceChildren(
          el("p", {}, el("span", { class: "status" }, `${response.status} ${response.statusText}`),
            ` in ${Math.round(performance.now() - began)} ms`),
          el("pre", {}, [...limits, "", pretty].join("\n")));
      } catch (error) {
        answer.replaceChildren(el("p", {}, `No answer: ${error.message}`));
      }
    };
    const box = el("div", { class: "try" }, ...inputs.map((i) => i.label), body, curl,
      el("div", {}, el("button", { type: "button", onclick: send }, "Send")), answer);
    box.addEventListener("input", shown);
    key.addEventListener("input", shown);
    shown();
    return el("details", {}, el("summary", {}, "Try it"), box);
  };

  const article = (method, path, operation) => {
    const parameters = (operation.parameters || []).map(resolve);
    const content = resolve(operation.requestBody)?.content?.["application/json"]?.schema;
    const answers = Object.entries(operation.responses || {}).map(([code, r]) => [code, resolve(r)]);
    const good = answers.filter(([code]) => code.startsWith("2"));
    const bad = answers.filter(([code]) => /^[45]/.test(code));
    const body = el("div", {}, ...paragraphs(operation.description || operation.summary));
    if (parameters.length) {
      body.append(el("h4", {}, "Parameters"), el("table", {}, el("tbody", {},
        ...parameters.map((p) => el("tr", {}, el("td", {}, p.name), el("td", {}, `${typeOf(p.schema)}, ${p.in}`),
          el("td", {}, ...prose(p.description || "")))))));
    }
    if (content) body.append(el("h4", {}, "Body"), fields(content));
    for (const [code, answer] of good) {
      const schema = answer.content?.["application/json"]?.schema;
      body.append(el("h4", {}, `Answer ${code}`), schema ? fields(schema) : el("p", { class: "quiet" }, answer.description));
    }
    if (bad.length) {
      body.append(el("details", {}, el("summary", {}, `Errors: ${bad.map(([code]) => code).join(", ")}`),
        el("table", {}, el("tbody", {}, ...bad.map(([code, r]) =>
          el("tr", {}, el("td", {}, code), el("td", {}, ""), el("td", {}, ...prose(r.description || ""))))))));
    }
    body.append(tryIt(method, path, operation, parameters, content));
    return el("article", { id: operation.operationId },
      el("h3", {}, el("span", { class: `method ${method}` }, method), el("span", { class: "path" }, path)), body);
  };

  const main = document.getElementById("main");
  const list = document.getElementById("list");
  const links = [];
  main.replaceChildren(...paragraphs(api.info.description));
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).filter(([, o]) => o.operationId).map(([method, o]) => [method.toUpperCase(), path, o]));
  for (const tag of api.tags) {
    const own = operations.filter(([, , o]) => (o.tags || []).includes(tag.name));
    if (!own.length) continue;
    main.append(el("h2", {}, tag.name), el("p", { class: "quiet" }, ...prose(tag.description || "")),
      ...own.map(([m, p, o]) => article(m, p, o)));
    const group = own.map(([m, p, o]) => {
      const link = el("a", { href: `#${o.operationId}`, title: `${m} ${p}: ${o.summary || ""}` },
        el("span", { class: `method ${m}` }, m), el("span", {}, o.operationId.split("_")[1] || p));
      links.push([link, `${m} ${p} ${o.summary} ${o.operationId}`.toLowerCase()]);
      return link;
    });
    list.append(el("section", {}, el("h2", {}, tag.name), ...group));
  }
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const [link, text] of links) link.hidden = !text.includes(wanted);
    for (const section of list.children) {
      section.hidden = [...section.querySelectorAll("a")].every((a) => a.hidden);
    }
  });
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
};

fetch("/openapi.json")
  .then((response) => response.json())
  .then(start)
  .catch((error) => {
    document.getElementById("main").replaceChildren(el("p", {}, `The reference can't be drawn: ${error.message}`));
  });
