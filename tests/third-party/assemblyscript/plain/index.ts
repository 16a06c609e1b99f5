// The filter of this folder's README, in AssemblyScript without an SDK, by its present compiler: `env.abort` and the start section.

@external("env", "proxy_get_header_map_value")
declare function getHeader(map: u32, name: usize, nameLen: usize, out: usize, outLen: usize): u32;
@external("env", "proxy_replace_header_map_value")
declare function replaceHeader(map: u32, name: usize, nameLen: usize, value: usize, valueLen: usize): u32;
@external("env", "proxy_remove_header_map_value")
declare function removeHeader(map: u32, name: usize, nameLen: usize): u32;
@external("env", "proxy_get_buffer_bytes")
declare function getBuffer(buffer: u32, start: usize, max: usize, out: usize, outLen: usize): u32;
@external("env", "proxy_set_buffer_bytes")
declare function setBuffer(buffer: u32, start: usize, len: usize, data: usize, dataLen: usize): u32;
@external("env", "proxy_send_local_response")
declare function sendLocalResponse(status: u32, details: usize, detailsLen: usize, body: usize, bodyLen: usize,
  headers: usize, headersLen: usize, grpc: i32): u32;

const REQUEST: u32 = 0;
const RESPONSE: u32 = 2;
const CONTINUE: u32 = 0;
const PAUSE: u32 = 1;

// Runs in the start section, before the host knows the instance.
const started = Date.now();
const chance = Math.random();
const allocated = new Map<usize, ArrayBuffer>();
const place = memory.data(8);
let greeting = "";
trace("started", 2, <f64>started, chance);

export function proxy_abi_version_0_2_1(): void {}

export function proxy_on_memory_allocate(size: usize): usize {
  const bytes = new ArrayBuffer(<i32>size);
  allocated.set(changetype<usize>(bytes), bytes);
  return changetype<usize>(bytes);
}

/** What the host wrote the place of to `place`. */
function taken(): string {
  const at = load<u32>(place);
  if (at == 0) return "";
  allocated.delete(at);
  return String.UTF8.decodeUnsafe(at, load<u32>(place, 4));
}

function header(map: u32, name: string): string {
  const bytes = String.UTF8.encode(name);
  return getHeader(map, changetype<usize>(bytes), bytes.byteLength, place, place + 4) == 0 ? taken() : "";
}

function set(map: u32, name: string, value: string): void {
  const n = String.UTF8.encode(name);
  const v = String.UTF8.encode(value);
  assert(replaceHeader(map, changetype<usize>(n), n.byteLength, changetype<usize>(v), v.byteLength) == 0, "set " + name);
}

function remove(map: u32, name: string): void {
  const n = String.UTF8.encode(name);
  assert(removeHeader(map, changetype<usize>(n), n.byteLength) == 0, "remove " + name);
}

function append(buffer: u32, end: bool): u32 {
  if (!end) return PAUSE;
  const before = getBuffer(buffer, 0, 1 << 20, place, place + 4) == 0 ? taken() : "";
  const body = String.UTF8.encode(before + " +as");
  assert(setBuffer(buffer, 0, <usize>-1, changetype<usize>(body), body.byteLength) == 0, "body");
  return CONTINUE;
}

export function proxy_on_context_create(context: u32, parent: u32): void {}

export function proxy_on_configure(context: u32, size: u32): bool {
  assert(getBuffer(7, 0, size, place, place + 4) == 0, "configuration");
  greeting = taken().toUpperCase();
  return true;
}

export function proxy_on_request_headers(context: u32, count: u32, end: bool): u32 {
  const ask = header(REQUEST, "x-ask");
  if (ask == "deny") {
    const body = String.UTF8.encode("denied by as\n");
    const headers = String.UTF8.encode("\x01\0\0\0\x08\0\0\0\x02\0\0\0x-denied\0as\0");
    assert(sendLocalResponse(403, 0, 0, changetype<usize>(body), body.byteLength,
      changetype<usize>(headers), headers.byteLength, -1) == 0);
    return PAUSE;
  }
  if (ask == "abort") throw new Error("as was asked to abort");
  set(REQUEST, "x-request-from", "as " + greeting);
  remove(REQUEST, "content-length");
  return CONTINUE;
}

export function proxy_on_request_body(context: u32, size: u32, end: bool): u32 { return append(0, end); }

export function proxy_on_response_headers(context: u32, count: u32, end: bool): u32 {
  set(RESPONSE, "x-response-from", "as " + (Date.now() >= started && chance < 1).toString());
  remove(RESPONSE, "content-length");
  return CONTINUE;
}

export function proxy_on_response_body(context: u32, size: u32, end: bool): u32 { return append(1, end); }
