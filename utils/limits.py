"""How large what people give may be. Every limit stands here; nothing sensible comes near one."""

MESSAGE = 1600  # characters of an error line: a screen
CONFIG_BYTES = 10**6  # of a YAML file
FILE_BYTES = 2 * 10**9  # of a list, a table or a JSON file
DEPTH = 32  # levels of sections and lists in YAML, JSON and a checkpoint's configuration
VALUES = 10**6  # values in one of them, those of an alias counted each time
TEXT = 4096  # characters of a name, a path or another text
NAME_BYTES = 255  # of a part of a path, as file systems have it
WHOLE = 2**63 - 1  # of a whole number
DIGITS = 100  # characters of a number in YAML
EPOCHS = 10**6
WORKERS = 1000
WIDTH = 2**14  # channels, hidden dimensions
LAYERS = 256  # layers and heads
SIDE = 8192  # pixels of a side of the network's input, of a map and of windows
PIXELS = 2**28  # of an image, 16,384 x 16,384; dataset.image_reader.kwargs.max_pixels changes it
TILES = 2**16  # of a photograph
