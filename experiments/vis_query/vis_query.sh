#!/bin/sh
# sh vis_query.sh PARTITION [key=value ...]   every class through Slurm, a job each, e.g. gpu; see ../launch.sh
exec sh "$(dirname -- "$0")/../launch.sh" --tool=vis_query "$0" "$@"
