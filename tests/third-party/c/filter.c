// The filter of this folder's README, in C without an SDK: clang and wasi-libc, as a reactor.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name)))
#define EXPORT(name) __attribute__((export_name(#name)))

IMPORT(proxy_get_header_map_value)
uint32_t get_header(uint32_t map, const char *name, size_t name_len, char **out, size_t *out_len);
IMPORT(proxy_replace_header_map_value)
uint32_t set_header(uint32_t map, const char *name, size_t name_len, const char *value, size_t value_len);
IMPORT(proxy_remove_header_map_value)
uint32_t remove_header(uint32_t map, const char *name, size_t name_len);
IMPORT(proxy_get_buffer_bytes)
uint32_t get_buffer(uint32_t buffer, size_t start, size_t max, char **out, size_t *out_len);
IMPORT(proxy_set_buffer_bytes)
uint32_t set_buffer(uint32_t buffer, size_t start, size_t len, const char *data, size_t data_len);
IMPORT(proxy_send_local_response)
uint32_t send_local_response(uint32_t status, const char *details, size_t details_len, const char *body, size_t body_len,
                             const char *headers, size_t headers_len, int32_t grpc_status);

enum { REQUEST_HEADERS = 0, RESPONSE_HEADERS = 2, REQUEST_BODY = 0, RESPONSE_BODY = 1, PLUGIN_CONFIG = 7 };
enum { CONTINUE = 0, PAUSE = 1 };

static char *greeting;
static time_t started;

static void must(uint32_t status, const char *what) {
    if (status != 0) {
        fprintf(stderr, "%s: status %u\n", what, status);
        abort();
    }
}

// What a library's constructors do, before main.
__attribute__((constructor)) static void begin(void) {
    started = time(NULL);
    FILE *none = fopen("/etc/passwd", "r");
    printf("c: constructed, %s\n", none ? "a file" : "no file");
}

EXPORT(proxy_abi_version_0_2_0) void abi(void) {}

EXPORT(malloc) void *allocate(size_t size) { return malloc(size); }

EXPORT(proxy_on_context_create) void on_context_create(uint32_t context, uint32_t parent) {
    (void)context;
    (void)parent;
}

EXPORT(proxy_on_configure) uint32_t on_configure(uint32_t context, uint32_t size) {
    (void)context;
    char *config = NULL;
    size_t len = 0;
    must(get_buffer(PLUGIN_CONFIG, 0, size, &config, &len), "configuration");
    greeting = calloc(1, len + 1);
    for (size_t i = 0; i < len; i++) greeting[i] = config[i] >= 'a' && config[i] <= 'z' ? config[i] - 32 : config[i];
    free(config);
    return started > 0;
}

EXPORT(proxy_on_request_headers) uint32_t on_request_headers(uint32_t context, uint32_t count, uint32_t end) {
    (void)context;
    (void)count;
    (void)end;
    char *ask = NULL;
    size_t len = 0;
    if (get_header(REQUEST_HEADERS, "x-ask", 5, &ask, &len) == 0) {
        bool deny = len == 4 && memcmp(ask, "deny", 4) == 0;
        free(ask);
        if (deny) {
            static const char headers[] = "\1\0\0\0\10\0\0\0\1\0\0\0x-denied\0c";
            must(send_local_response(403, NULL, 0, "denied by c\n", 12, headers, sizeof headers, -1), "reply");
            return PAUSE;
        }
    }
    char value[256];
    int value_len = snprintf(value, sizeof value, "c %s", greeting);
    must(set_header(REQUEST_HEADERS, "x-request-from", 14, value, (size_t)value_len), "set");
    const char *mood = getenv("FILTER_MOOD"), *home = getenv("HOME");
    value_len = snprintf(value, sizeof value, "%s, %s", mood ? mood : "no mood", home ? home : "no home");
    must(set_header(REQUEST_HEADERS, "x-environment", 13, value, (size_t)value_len), "set");
    must(remove_header(REQUEST_HEADERS, "content-length", 14), "remove");
    return CONTINUE;
}

static uint32_t append(uint32_t buffer, uint32_t end) {
    if (!end) return PAUSE;
    char *body = NULL;
    size_t len = 0;
    get_buffer(buffer, 0, 1 << 20, &body, &len);
    char *text = malloc(len + 3);
    memcpy(text, body, len);
    memcpy(text + len, " +c", 3);
    must(set_buffer(buffer, 0, SIZE_MAX, text, len + 3), "body");
    free(text);
    free(body);
    return CONTINUE;
}

EXPORT(proxy_on_request_body) uint32_t on_request_body(uint32_t context, uint32_t size, uint32_t end) {
    (void)context;
    (void)size;
    return append(REQUEST_BODY, end);
}

EXPORT(proxy_on_response_headers) uint32_t on_response_headers(uint32_t context, uint32_t count, uint32_t end) {
    (void)context;
    (void)count;
    (void)end;
    char value[32];
    int len = snprintf(value, sizeof value, "c %s", time(NULL) >= started ? "true" : "false");
    must(set_header(RESPONSE_HEADERS, "x-response-from", 15, value, (size_t)len), "set");
    must(remove_header(RESPONSE_HEADERS, "content-length", 14), "remove");
    return CONTINUE;
}

EXPORT(proxy_on_response_body) uint32_t on_response_body(uint32_t context, uint32_t size, uint32_t end) {
    (void)context;
    (void)size;
    return append(RESPONSE_BODY, end);
}
