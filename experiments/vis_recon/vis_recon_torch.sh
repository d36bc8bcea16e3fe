#!/bin/sh
# sh vis_recon_torch.sh CLASS [key=value ...]   one class on this machine's first GPU or else its CPU, e.g. bottle
exec sh "$(dirname -- "$0")/../launch.sh" --tool=vis_recon "$0" "$@"
