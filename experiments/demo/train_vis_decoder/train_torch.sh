#!/bin/sh
# sh train_torch.sh NUM_PROCESSES GPU_IDS|cpu CLASS [-v] [--overwrite] [key=value ...]   one class on this machine, e.g. 2 0,1 bottle
exec sh "$(dirname -- "$0")/../../launch.sh" --tool=train_vis_decoder "$0" "$@"
