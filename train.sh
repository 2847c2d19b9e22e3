#!/usr/bin/env bash
# Fine-tune by the published recipe. Edit the values; options given here override them:
#     bash train.sh --task_name mine --batch_size 2
# --batch_size is that of each GPU.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
requirements=requirements.txt
modules="torch safetensors monai torchio scipy edt tqdm matplotlib"
. "$root/utils/environment.sh"

options=(
    --task_name union_train
    --checkpoint "$root/ckpt/sam_med3d_turbo_bbox_init.pth"  # "" begins from random weights
    --work_dir "$root/work_dir"
    --model_type vit_b_ori
    --num_epochs 200
    --batch_size 6
    --accumulation_steps 20
    --lr 8e-5
    --others_lr 0.1  # of prompt encoder and mask decoder, over --lr
    --weight_decay 0.1
    --lr_scheduler multisteplr
    --step_size 120 180
    --gamma 0.1
    --click_type random
    --recipe published  # or adaptive: for the policy of that name, on cases prepared with --native
    --num_workers 4
    --seed 0
    --amp auto
    --device auto
    --multi_gpu  # torchrun with a process on each GPU, where there are several
)

exec "$PYTHON" "$root/train.py" "${options[@]}" "$@"
