#!/bin/sh
# sh vis_recon.sh PARTITION [key=value ...]   every class through Slurm, a job each, e.g. gpu; see ../../launch.sh
exec sh "$(dirname -- "$0")/../../launch.sh" --tool=vis_recon "$0" "$@"
