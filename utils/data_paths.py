"""The training data: edit this list."""

# Folders of cases made by data/resample_preprocess_for_CVPR_3DFM.py; all .npz files in and below
# them are used. Relative paths are relative to the repository. A folder of each dataset, as here
# with the challenge's structure MODALITY/DATASET, or one folder of all.
img_datas = [
    "data/prepared",
]
