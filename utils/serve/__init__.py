"""A network behind a port: a service and a page in the browser. tools/serve.py starts it."""
