// The filter of this folder's README, in C++ without an SDK: clang and libc++, as a reactor with a `main`.
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#define IMPORT(name) extern "C" __attribute__((import_module("env"), import_name(#name)))
#define EXPORT(name) extern "C" __attribute__((export_name(#name)))

IMPORT(proxy_get_configuration) uint32_t get_configuration(char **out, size_t *out_len);
IMPORT(proxy_get_header_map_value)
uint32_t get_header(uint32_t map, const char *name, size_t name_len, char **out, size_t *out_len);
IMPORT(proxy_replace_header_map_value)
uint32_t set_header(uint32_t map, const char *name, size_t name_len, const char *value, size_t value_len);
IMPORT(proxy_remove_header_map_value) uint32_t remove_header(uint32_t map, const char *name, size_t name_len);
IMPORT(proxy_get_buffer_bytes)
uint32_t get_buffer(uint32_t buffer, size_t start, size_t max, char **out, size_t *out_len);
IMPORT(proxy_set_buffer_bytes)
uint32_t set_buffer(uint32_t buffer, size_t start, size_t len, const char *data, size_t data_len);
IMPORT(proxy_send_local_response)
uint32_t send_local_response(uint32_t status, const char *details, size_t details_len, const char *body, size_t body_len,
                             const char *headers, size_t headers_len, int32_t grpc_status);

namespace {

constexpr uint32_t kRequest = 0, kResponse = 2, kContinue = 0, kPause = 1;

// A global with a constructor: the runtime must have run it before any callback.
std::map<uint32_t, std::string> bodies{{0, "request"}, {1, "response"}};
std::string greeting;

void must(uint32_t status) {
    if (status != 0) abort();
}

// Takes what the host allocated with our malloc.
std::string take(char *bytes, size_t len) {
    std::unique_ptr<char, decltype(&free)> owned(bytes, free);
    return std::string(bytes ? bytes : "", len);
}

// ABI 0.1.0: a header that is not there is an empty one, and its status is OK.
std::string header(uint32_t map, const std::string &name) {
    char *value = nullptr;
    size_t len = 0;
    must(get_header(map, name.data(), name.size(), &value, &len));
    return take(value, len);
}

void set(uint32_t map, const std::string &name, const std::string &value) {
    must(set_header(map, name.data(), name.size(), value.data(), value.size()));
}

void remove(uint32_t map, const std::string &name) { must(remove_header(map, name.data(), name.size())); }

uint32_t append(uint32_t buffer, uint32_t end) {
    if (!end) return kPause;
    char *bytes = nullptr;
    size_t len = 0;
    get_buffer(buffer, 0, 1 << 20, &bytes, &len);
    auto body = take(bytes, len) + " +c++";
    must(set_buffer(buffer, 0, SIZE_MAX, body.data(), body.size()));
    return bodies.at(buffer).empty() ? kPause : kContinue;
}

} // namespace

int main() {
    std::puts("c++: main");
    return 0;
}

EXPORT(proxy_abi_version_0_1_0) void abi() {}

EXPORT(malloc) void *allocate(size_t size) { return malloc(size); }

EXPORT(proxy_on_context_create) void on_context_create(uint32_t, uint32_t) {}

EXPORT(proxy_on_configure) uint32_t on_configure(uint32_t, uint32_t size) {
    char *bytes = nullptr;
    size_t len = 0;
    must(get_configuration(&bytes, &len));
    greeting = take(bytes, len);
    std::transform(greeting.begin(), greeting.end(), greeting.begin(), [](unsigned char c) { return std::toupper(c); });
    return len == size;
}

EXPORT(proxy_on_request_headers) uint32_t on_request_headers(uint32_t, uint32_t) {
    if (header(kRequest, "x-ask") == "deny") {
        static const char headers[] = "\1\0\0\0\10\0\0\0\3\0\0\0x-denied\0c++";
        const std::string body = "denied by c++\n";
        must(send_local_response(403, nullptr, 0, body.data(), body.size(), headers, sizeof headers, -1));
        return kPause;
    }
    set(kRequest, "x-request-from", "c++ " + greeting);
    remove(kRequest, "content-length");
    return kContinue;
}

EXPORT(proxy_on_request_body) uint32_t on_request_body(uint32_t, uint32_t, uint32_t end) { return append(0, end); }

EXPORT(proxy_on_response_headers) uint32_t on_response_headers(uint32_t, uint32_t) {
    set(kResponse, "x-response-from", "c++ true");
    remove(kResponse, "content-length");
    return kContinue;
}

EXPORT(proxy_on_response_body) uint32_t on_response_body(uint32_t, uint32_t, uint32_t end) { return append(1, end); }
