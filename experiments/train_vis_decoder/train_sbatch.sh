#!/bin/sh
# sh train_sbatch.sh NUM_GPUS PARTITION [-v] [--overwrite] [key=value ...]   every class queued, a job each, e.g. 8 gpu; see ../launch.sh
exec sh "$(dirname -- "$0")/../launch.sh" --tool=train_vis_decoder "$0" "$@"
