"""The embedded model server: the flags and the protocol of `tensorflow_model_server`, in one Python process.

From the wire inwards: `rest` and `grpc_service` speak the two protocols; `json_request`, `json_values`,
`json_response`, `examples` and `tensors` turn messages into arrays and back; `calls` answers one request; `versions`
decides which versions are loaded; `engine` runs a SavedModel. `app` holds them together, `config` reads the model
configuration and `__main__` the command line.
"""
