#!/bin/sh
# sh eval_torch.sh NUM_PROCESSES GPU_IDS|cpu [key=value ...]   on this machine, e.g. 2 0,1 or 1 cpu
exec sh "$(dirname -- "$0")/../../launch.sh" "$0" "$@"
