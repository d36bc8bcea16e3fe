#!/bin/sh
# sh train.sh NUM_GPUS PARTITION [--overwrite] [key=value ...]   through Slurm, e.g. 8 gpu; see ../../launch.sh
exec sh "$(dirname -- "$0")/../../launch.sh" "$0" "$@"
