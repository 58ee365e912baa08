"""Every field of a training config with its default; files in configs/ change a few of them."""

from types import SimpleNamespace

from ml_collections import ConfigDict, config_dict


def training_config():
    """The default: a folder of healthy 2-D images, a CPU-sized network, three members."""
    config = ConfigDict()
    config.seed = 0

    # Data: what is read and how it is brought to one size.
    config.dataset = "folder"  # folder, or a name of caal_jax.data.public.SETS
    config.data_dir = ""  # mood: "" means the built-in phantom
    config.slice_axis = 2  # folder: the axis of volumes that slices are cut along
    config.validation_fraction = 0.2  # of the healthy patients; never trained on
    config.image_size = 128  # side in pixels of what the network sees
    # Slices, rows, columns in voxels, as in "32,32,32": whole volumes, learnt in patches of that
    # size at their own resolution, in place of slices of image_size. Tasks: cutpaste, fpi, pii,
    # probabilistic_pii.
    config.patch_size = ""
    # Slices, rows, columns of such volumes in mm, as in "5,1,1": the U-Net halves an axis while its
    # spacing is at most twice the finest. "": by the sides of the patch, flat for thick slices.
    config.spacing_mm = ""
    config.foreground_threshold = 0.05  # of the robust intensity range

    # The synthetic anomalies, made on the device inside the training step.
    # One of caal_jax.synthesis.TASKS, a mixture (fpi*2+nsa) or a schedule (cutpaste,500@fpi*2+nsa).
    config.task = "fpi_blob"
    # preprocess (every image), source_guidance, both_guidance, label_only or none
    # The paper's way is preprocess. docs/study.md says why it is not the default.
    config.equalise = "none"
    config.equalise_foreground = True  # histogram of the foreground alone, background stays 0
    config.num_patches = 3  # at most, per image, each blended into the last result
    config.source_jitter = True  # turns, zooms, shifts, new intensities for what is blended in
    config.clean_fraction = 0.25  # of each batch is left healthy, with an empty label

    # The localiser.
    # unet, fpi_wrn, nsa_resnet18, phiseg or probabilistic_unet; 0 is the named one's own default
    # and an option that it does not have is refused.
    config.localiser = "unet"
    config.width = 0  # channels of the first level (unet 24); of fpi_wrn the widening (4)
    config.depth = 0  # levels (unet 4); of fpi_wrn layers, 16 ("dec") or 19 ("decdeeper")
    config.residual = True  # unet: each block adds its input to what it makes of it
    config.latent_levels = 0  # phiseg's (5)
    config.dropout = 0.0  # > 0 and num_samples > 1: Monte Carlo dropout
    # What is learnt of the label: std (mean and std), binary, gaussian, intensity or classes.
    # Only probabilistic_pii has a std to learn; with other tasks std soon says 0 everywhere.
    config.head = "std"
    config.std_weight = 1.0  # head std: weight of the std's loss
    config.num_classes = 0  # head classes: levels of the label (5)
    config.compute_dtype = "float32"  # or bfloat16; parameters and losses stay float32

    # Training.
    config.num_members = 3  # of the deep ensemble; a finished run may be given more
    config.members = ""  # train only these, as in 2 or 0-2,4; a run without it joins all
    config.num_steps = 1000
    config.batch_size = 16  # per member
    config.accumulation = 1  # parts of a batch that are computed one by one, to save memory
    config.skip_nonfinite = False  # leave out a step with a NaN, and count it, instead of stopping
    config.learning_rate = 2e-3  # peak, of Adam's part; linear warm-up, cosine decay to zero
    config.warmup_steps = 50
    config.weight_decay = 1e-4
    config.log_steps = 20
    config.tracking = "none"  # or wandb, mlflow, wandb+mlflow, beside TensorBoard
    config.checkpoint_steps = 250
    # What is used once trained: last, or best, the checkpoint of the lowest loss on synthetic
    # anomalies in held-out healthy cases.
    config.checkpoint = "last"

    # Confidence and evaluation.
    # Test-time augmentation: none, mirror, flips, shifts, or some of them (mirror+shifts)
    config.augment = "none"
    config.fit_bias = False  # calibrate pixels by a temperature and a bias, not by the first alone
    config.num_samples = 2  # per member, from the std head and dropout, as far as they vary
    config.score_fraction = 0.01  # image score: mean of this top share of the foreground
    config.score_smoothing = 1.0  # slices: volumes are smoothed across them before they are scored
    config.false_positive_rate = 0.05  # of the image threshold, on held-out healthy cases
    config.abstain_z = 1.0  # abstain where the threshold is this close, in stds of the score
    config.num_resamples = 1000  # bootstrap
    return config


def when_given(field, given, otherwise):
    """A value that follows another: `given` if that field is not empty, else `otherwise`.

    field: a `config.get_ref(...)`. Both values are of one type. The value is settled when it is
    read, so `--config.data_dir=...` on the command line counts; setting it by hand wins.
    """
    choose = SimpleNamespace(fn=lambda other, ref: given if ref else other, args=[field])
    return config_dict.FieldReference(otherwise, op=choose)
