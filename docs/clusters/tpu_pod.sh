#!/bin/bash
# A TPU pod: the same command on every worker; JAX finds the others by itself.
# The work directory must lie on a file system that all workers share.
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="
    cd samon && python main.py --distributed --config=configs/imagenet.py:resnet50 \
        --config.num_devices=0 --workdir=/mnt/shared/runs/imagenet"
