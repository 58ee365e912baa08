"""draft"""

from caal_jax.defaults import training_config, when_given


def get_config():
    config = training_config()
    config.dataset = "mood"
    config.region = "brain"
    data_dir = config.get_ref("data_dir")
    config.phantom_size = 64
    config.phantom_train = 40
    config.phantom_validation = 20
    config.phantom_test = 48
    config.image_size = when_given(data_dir, 256, 64)
    config.width = when_given(data_dir, 32, 16)
    config.depth = when_given(data_dir, 6, 4)
    config.num_members = when_given(data_dir, 5, 3)
    config.num_steps = when_given(data_dir, 50_000, 800)
    return config
