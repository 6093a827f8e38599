// The part of the Web platform that a plugin sees, over the worker's operations.
//
// Runs once, before the plugin. Its value is the two functions that the worker calls. It takes everything it needs into
// its own scope and then removes the engine's internals from the global object, so that a plugin cannot reach an
// operation except through what is defined here.
(() => {
  "use strict";
  const core = globalThis.Deno.core;
  const {
    op_fetch, op_log, op_url_parse, op_url_set, op_form_parse, op_form_serialize,
    op_base64_encode, op_base64_decode, op_text_decode,
  } = core.ops;
  const { createTimer, cancelTimer, encode } = core;
  const { Error, String, Object } = globalThis;
  const { stringify } = JSON;

  const define = (entries) => {
    for (const [name, value] of Object.entries(entries)) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
    }
  };

  // --- console: one line for the node's log per call, bounded by the worker ---
  const show = (value) => {
    if (typeof value === "string") return value;
    if (value instanceof Error) return `${value.name}: ${value.message}`;
    if (typeof value === "function") return `[function ${value.name}]`;
    if (typeof value === "object" && value !== null) {
      try {
        return stringify(value) ?? String(value);
      } catch {
        return Object.prototype.toString.call(value);
      }
    }
    return String(value);
  };
  const logAt = (level) => (...values) => op_log(level, values.map(show).join(" "));
  const console = {
    debug: logAt("debug"), log: logAt("info"), info: logAt("info"), warn: logAt("warn"), error: logAt("error"),
  };

  // --- timers ---
  const timers = new Map();
  let nextTimer = 1;
  const startTimer = (callback, delay, args, repeat) => {
    if (typeof callback !== "function") throw new TypeError("a timer needs a function");
    const id = nextTimer++;
    const run = () => {
      if (!repeat) timers.delete(id);
      callback(...args);
    };
    timers.set(id, createTimer(run, Math.max(1, Number(delay) || 0), undefined, repeat, true, false));
    return id;
  };
  const stopTimer = (id) => {
    const timer = timers.get(id);
    if (timer !== undefined) {
      timers.delete(id);
      cancelTimer(timer);
    }
  };

  // --- URL and URLSearchParams, parsed by the same library as the node's ---
  class URLSearchParams {
    #pairs = [];
    #changed = () => {};

    constructor(init = "", changed = undefined) {
      if (typeof init === "string") {
        this.#pairs = op_form_parse(init.startsWith("?") ? init.slice(1) : init);
      } else if (init[Symbol.iterator] !== undefined) {
        for (const [name, value] of init) this.#pairs.push([String(name), String(value)]);
      } else {
        for (const [name, value] of Object.entries(init)) this.#pairs.push([name, String(value)]);
      }
      if (changed !== undefined) this.#changed = changed;
    }
    get size() { return this.#pairs.length; }
    get(name) { return this.#pairs.find(([key]) => key === String(name))?.[1] ?? null; }
    getAll(name) { return this.#pairs.filter(([key]) => key === String(name)).map(([, value]) => value); }
    has(name) { return this.#pairs.some(([key]) => key === String(name)); }
    append(name, value) {
      this.#pairs.push([String(name), String(value)]);
      this.#changed(this.toString());
    }
    set(name, value) {
      const at = this.#pairs.findIndex(([key]) => key === String(name));
      if (at < 0) return this.append(name, value);
      this.#pairs[at][1] = String(value);
      this.#pairs = this.#pairs.filter(([key], index) => index <= at || key !== String(name));
      this.#changed(this.toString());
    }
    delete(name) {
      this.#pairs = this.#pairs.filter(([key]) => key !== String(name));
      this.#changed(this.toString());
    }
    sort() {
      this.#pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
      this.#changed(this.toString());
    }
    forEach(callback) { for (const [name, value] of this) callback(value, name, this); }
    *keys() { for (const [name] of this.#pairs) yield name; }
    *values() { for (const [, value] of this.#pairs) yield value; }
    *entries() { for (const [name, value] of this.#pairs) yield [name, value]; }
    [Symbol.iterator]() { return this.entries(); }
    toString() { return op_form_serialize(this.#pairs); }
  }

  class URL {
    #parts;
    #params = null;

    constructor(url, base = undefined) {
      const parts = op_url_parse(String(url), base === undefined ? "" : String(base));
      if (parts === null) {
        throw new TypeError(`Invalid URL: ${url}` + (base === undefined ? "" : ` relative to ${base}`));
      }
      this.#parts = parts;
    }
    static canParse(url, base = undefined) {
      return op_url_parse(String(url), base === undefined ? "" : String(base)) !== null;
    }
    static parse(url, base = undefined) { return URL.canParse(url, base) ? new URL(url, base) : null; }
    static {
      const parts = [
        "href", "protocol", "username", "password", "host", "hostname", "port", "pathname", "search", "hash",
      ];
      for (const part of parts) {
        Object.defineProperty(URL.prototype, part, {
          get() { return this.#parts[part]; },
          set(value) {
            const changed = op_url_set(this.#parts.href, part, String(value));
            if (changed === null) {
              if (part === "href") throw new TypeError(`Invalid URL: ${value}`);
              return;
            }
            this.#parts = changed;
            this.#params = null;
          },
          configurable: true,
          enumerable: true,
        });
      }
    }
    get origin() { return this.#parts.origin; }
    get searchParams() {
      this.#params ??= new URLSearchParams(this.#parts.search, (query) => {
        this.#parts = op_url_set(this.#parts.href, "search", query) ?? this.#parts;
      });
      return this.#params;
    }
    toString() { return this.href; }
    toJSON() { return this.href; }
  }

  // --- text and base64 ---
  const bytesOf = (input) => {
    if (input instanceof Uint8Array) return input;
    if (ArrayBuffer.isView(input)) return new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
    if (input instanceof ArrayBuffer) return new Uint8Array(input);
    throw new TypeError("expected bytes: a Uint8Array, another view, or an ArrayBuffer");
  };
  class TextEncoder {
    get encoding() { return "utf-8"; }
    encode(text = "") { return encode(String(text)); }
  }
  class TextDecoder {
    #label;
    #fatal;
    #ignoreBOM;
    constructor(label = "utf-8", { fatal = false, ignoreBOM = false } = {}) {
      const known = { "utf-8": "utf-8", "utf8": "utf-8", "latin1": "latin1", "iso-8859-1": "latin1", "utf-16le": "utf-16le" };
      this.#label = known[String(label).trim().toLowerCase()];
      if (this.#label === undefined) {
        throw new RangeError(`TextDecoder knows utf-8, utf-16le and latin1, not ${label}`);
      }
      this.#fatal = Boolean(fatal);
      this.#ignoreBOM = Boolean(ignoreBOM);
    }
    get encoding() { return this.#label; }
    decode(input = new Uint8Array()) {
      const text = op_text_decode(bytesOf(input), this.#label, this.#fatal);
      return !this.#ignoreBOM && text.startsWith("\ufeff") ? text.slice(1) : text;
    }
  }
  const btoa = (text) => op_base64_encode(String(text));
  const atob = (text) => op_base64_decode(String(text));

  // --- fetch, done by the node ---
  class Headers {
    #pairs = [];
    constructor(init = {}) {
      const entries = init[Symbol.iterator] !== undefined ? init : Object.entries(init);
      for (const [name, value] of entries) this.append(name, value);
    }
    get(name) {
      const key = String(name).toLowerCase();
      const values = this.#pairs.filter(([known]) => known === key).map(([, value]) => value);
      return values.length === 0 ? null : values.join(", ");
    }
    getSetCookie() { return this.#pairs.filter(([name]) => name === "set-cookie").map(([, value]) => value); }
    has(name) { return this.get(name) !== null; }
    append(name, value) { this.#pairs.push([String(name).toLowerCase(), String(value)]); }
    set(name, value) {
      this.delete(name);
      this.append(name, value);
    }
    delete(name) { this.#pairs = this.#pairs.filter(([known]) => known !== String(name).toLowerCase()); }
    forEach(callback) { for (const [name, value] of this) callback(value, name, this); }
    *keys() { for (const [name] of this.#pairs) yield name; }
    *values() { for (const [, value] of this.#pairs) yield value; }
    *entries() { for (const [name, value] of this.#pairs) yield [name, value]; }
    [Symbol.iterator]() { return this.entries(); }
  }

  class Response {
    #body;
    constructor(reply) {
      this.status = reply.status;
      this.ok = reply.status >= 200 && reply.status < 300;
      this.url = reply.url;
      this.headers = new Headers(reply.headers);
      this.#body = reply.body;
    }
    async bytes() { return this.#body; }
    async arrayBuffer() { return this.#body.slice().buffer; }
    async text() {
      const charset = /charset\s*=\s*"?([^\s;"]+)/i.exec(this.headers.get("content-type") ?? "")?.[1] ?? "utf-8";
      const latin = /^(iso-8859-1|latin1|windows-1252)$/i.test(charset);
      return new TextDecoder(latin ? "latin1" : "utf-8").decode(this.#body);
    }
    json() {
      // As in fetchFor: made here, where the plugin's frame still is.
      const failure = new SyntaxError("");
      return this.text().then(JSON.parse).catch((error) => {
        failure.message = `${error.message}, in the answer of ${this.url}`;
        throw failure;
      });
    }
  }

  const requestBody = (body, headers) => {
    if (body === undefined || body === null) return null;
    if (body instanceof URLSearchParams) {
      if (!headers.has("content-type")) headers.set("content-type", "application/x-www-form-urlencoded;charset=UTF-8");
      return encode(body.toString());
    }
    return typeof body === "string" ? encode(body) : bytesOf(body);
  };

  const fetchFor = (call) => (url, { method = "GET", headers = {}, body = undefined } = {}) => {
    // Made here, in the plugin's own turn: an operation that fails later has no frame of the plugin left to name.
    const failure = new Error("");
    failure.name = "FetchError";
    const sent = new Headers(headers);
    const bytes = requestBody(body, sent);
    const request = { call, method: String(method).toUpperCase(), url: String(url), headers: [...sent] };
    return op_fetch(request, bytes).then((reply) => new Response(reply), (error) => {
      failure.message = error.message;
      throw failure;
    });
  };

  define({
    console, URL, URLSearchParams, TextEncoder, TextDecoder, Headers, atob, btoa,
    setTimeout: (callback, delay, ...args) => startTimer(callback, delay, args, false),
    setInterval: (callback, delay, ...args) => startTimer(callback, delay, args, true),
    clearTimeout: stopTimer,
    clearInterval: stopTimer,
  });
  delete globalThis.Deno;
  delete globalThis.__bootstrap;
  delete globalThis.WebAssembly;
  delete globalThis.SharedArrayBuffer;
  delete globalThis.Atomics;
  // The engine makes its own errors of this one and does not survive without it.
  Object.defineProperty(globalThis, "Error", { value: Error, writable: false, configurable: false });

  return {
    manifest: (module) => {
      if (typeof module.extract !== "function") {
        throw new TypeError("a plugin must `export async function extract(url, ctx)`");
      }
      return stringify(module.manifest ?? null);
    },
    extract: async (module, call, url) => {
      try {
        return stringify(await module.extract(url, Object.freeze({ fetch: fetchFor(call) })));
      } catch (thrown) {
        // Anything may be thrown; what is not an error becomes its text.
        throw thrown instanceof Error ? thrown : show(thrown);
      }
    },
  };
})();
