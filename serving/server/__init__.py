"""The embedded model server: the flags and the protocol of `tensorflow_model_server`, in one Python process.

From the wire inwards: `rest` and `grpc_service` speak the two protocols; `json_request`, `json_values`,
`json_response`, `examples` and `tensors` turn messages into arrays and back; `calls` answers one request; `versions`
decides which versions are loaded; `engine` runs a SavedModel. `app` holds them together, `config` reads the model
configuration and `__main__` the command line.

Deviations from tensorflow_model_server 2.20, besides those the modules name:
- a start fails when every model is damaged, not when any is; a folder that is not yet a complete SavedModel is waited
  for, and a damaged one is tried again when its files change;
- version labels may name versions that are not loaded yet (it needs a flag for that);
- inputs must have the shape of the signature, where it leaves that to the graph;
- SIGTERM finishes the requests in flight;
- MultiInference, batching, monitoring, TLS and compressed REST bodies are not there.
"""
