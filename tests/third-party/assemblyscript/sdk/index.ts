// The filter of this folder's README, on the AssemblyScript SDK (@solo-io/proxy-runtime 0.1.8): ABI 0.2.0, started by the start section.

export * from "@solo-io/proxy-runtime/proxy";
import {
  RootContext, Context, registerRootContext, stream_context, send_local_response, log, LogLevelValues,
  FilterHeadersStatusValues, FilterDataStatusValues, GrpcStatusValues, HeaderPair,
} from "@solo-io/proxy-runtime";
import { get_buffer_bytes, BufferTypeValues } from "@solo-io/proxy-runtime/runtime";

class Root extends RootContext {
  greeting: string = "";

  onConfigure(size: u32): bool {
    // Not super.onConfigure: it takes the length of an earlier answer for that of the configuration.
    this.greeting = String.UTF8.decode(get_buffer_bytes(BufferTypeValues.PluginConfiguration, 0, size)).toUpperCase();
    log(LogLevelValues.info, "assemblyscript: configured");
    return true;
  }

  createContext(context_id: u32): Context {
    return new Http(context_id, this);
  }
}

class Http extends Context {
  greeting: string;

  constructor(context_id: u32, root: Root) {
    super(context_id, root);
    this.greeting = root.greeting;
  }

  onRequestHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    if (stream_context.headers.request.get("x-ask") == "deny") {
      const denied = new HeaderPair(String.UTF8.encode("x-denied"), String.UTF8.encode("assemblyscript"));
      send_local_response(403, "denied", String.UTF8.encode("denied by assemblyscript\n"), [denied], GrpcStatusValues.Ok);
      return FilterHeadersStatusValues.StopIteration;
    }
    stream_context.headers.request.add("x-request-from", "assemblyscript " + this.greeting);
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("x-response-from", "assemblyscript true");
    return FilterHeadersStatusValues.Continue;
  }
}

registerRootContext((context_id: u32) => { return new Root(context_id); }, "words");
