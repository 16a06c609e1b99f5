// The filter of this folder's README, in Go without an SDK: the toolchain's own imports and exports, and its whole runtime.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"
)

//go:wasmimport env proxy_get_header_map_value
func getHeader(kind uint32, name unsafe.Pointer, nameLen uint32, out, outLen unsafe.Pointer) uint32

//go:wasmimport env proxy_replace_header_map_value
func replaceHeader(kind uint32, name unsafe.Pointer, nameLen uint32, value unsafe.Pointer, valueLen uint32) uint32

//go:wasmimport env proxy_remove_header_map_value
func removeHeader(kind uint32, name unsafe.Pointer, nameLen uint32) uint32

//go:wasmimport env proxy_get_buffer_bytes
func getBuffer(kind, start, max uint32, out, outLen unsafe.Pointer) uint32

//go:wasmimport env proxy_set_buffer_bytes
func setBuffer(kind, start, length uint32, data unsafe.Pointer, dataLen uint32) uint32

//go:wasmimport env proxy_send_local_response
func sendLocalResponse(status uint32, details unsafe.Pointer, detailsLen uint32, body unsafe.Pointer, bodyLen uint32,
	headers unsafe.Pointer, headersLen uint32, grpc int32) uint32

const (
	requestHeaders  = 0
	responseHeaders = 2
	requestBody     = 0
	responseBody    = 1
	pluginConfig    = 7
)

// What the host allocated and the guest has not taken yet: kept here, or the collector would take it.
var allocated = map[uintptr][]byte{}

//go:wasmexport proxy_on_memory_allocate
func allocate(size uint32) unsafe.Pointer {
	memory := make([]byte, size)
	place := unsafe.Pointer(unsafe.SliceData(memory))
	allocated[uintptr(place)] = memory
	return place
}

// take makes the host's answer a string of ours.
func take(place, size uint32) string {
	memory := allocated[uintptr(place)]
	delete(allocated, uintptr(place))
	return string(memory[:size])
}

func header(kind uint32, name string) (string, bool) {
	var place, size uint32
	status := getHeader(kind, unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), unsafe.Pointer(&place), unsafe.Pointer(&size))
	if status != 0 {
		return "", false
	}
	return take(place, size), true
}

func setHeader(kind uint32, name, value string) {
	must(replaceHeader(kind, unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)),
		unsafe.Pointer(unsafe.StringData(value)), uint32(len(value))))
}

func buffer(kind uint32) string {
	var place, size uint32
	if getBuffer(kind, 0, 1<<20, unsafe.Pointer(&place), unsafe.Pointer(&size)) != 0 {
		return ""
	}
	return take(place, size)
}

func setBody(kind uint32, text string) {
	must(setBuffer(kind, 0, 1<<30, unsafe.Pointer(unsafe.StringData(text)), uint32(len(text))))
}

func must(status uint32) {
	if status != 0 {
		panic(fmt.Sprintf("status %d", status))
	}
}

var (
	greeting string
	started  time.Time
)

func init() {
	started = time.Now()
	fmt.Println("go: initialized")
}

//go:wasmexport proxy_abi_version_0_2_1
func abi() {}

//go:wasmexport proxy_on_context_create
func onContextCreate(context, parent uint32) {}

//go:wasmexport proxy_on_configure
func onConfigure(context, size uint32) uint32 {
	greeting = strings.ToUpper(buffer(pluginConfig))
	return 1
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(context, count, end uint32) uint32 {
	// Work for another goroutine and its scheduler, inside of one callback.
	answer := make(chan string)
	go func() {
		asked, _ := header(requestHeaders, "x-ask")
		time.Sleep(time.Millisecond)
		answer <- asked
	}()
	if <-answer == "deny" {
		body := "denied by go\n"
		pairs := "\x01\x00\x00\x00\x08\x00\x00\x00\x02\x00\x00\x00x-denied\x00go\x00"
		must(sendLocalResponse(403, nil, 0, unsafe.Pointer(unsafe.StringData(body)), uint32(len(body)),
			unsafe.Pointer(unsafe.StringData(pairs)), uint32(len(pairs)), -1))
		return 1
	}
	setHeader(requestHeaders, "x-request-from", "go "+greeting)
	home, found := os.LookupEnv("HOME")
	if !found {
		home = "no home"
	}
	setHeader(requestHeaders, "x-environment", os.Getenv("FILTER_MOOD")+", "+home)
	length := "content-length"
	must(removeHeader(requestHeaders, unsafe.Pointer(unsafe.StringData(length)), uint32(len(length))))
	return 0
}

//go:wasmexport proxy_on_request_body
func onRequestBody(context, size, end uint32) uint32 {
	return appendToBody(requestBody, end)
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(context, count, end uint32) uint32 {
	setHeader(responseHeaders, "x-response-from", fmt.Sprintf("go %t", time.Since(started) > 0))
	length := "content-length"
	must(removeHeader(responseHeaders, unsafe.Pointer(unsafe.StringData(length)), uint32(len(length))))
	return 0
}

//go:wasmexport proxy_on_response_body
func onResponseBody(context, size, end uint32) uint32 {
	return appendToBody(responseBody, end)
}

func appendToBody(kind, end uint32) uint32 {
	if end == 0 {
		return 1
	}
	setBody(kind, buffer(kind)+" +go")
	return 0
}

//go:wasmexport proxy_on_done
func onDone(context uint32) uint32 { return 1 }

func main() {}
