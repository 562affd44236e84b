"""What rooms that may not import each other have to spell alike."""

from __future__ import annotations

import dataset.labels
import dataset.transforms
import model.aim
import model.bafft
import model.deeplab
import model.isia
import model.regions
import model.weight_files
import utils.checkpoint
import utils.config
import utils.metrics
import utils.pseudo_label
import utils.runtime


def test_ignored_pixels_are_255_everywhere():
    modules = (dataset.labels, model.regions, utils.metrics, utils.pseudo_label)
    assert {module.IGNORE for module in modules} == {255}


def test_the_configuration_knows_the_modes_of_the_method():
    assert utils.config.AIM == model.aim.MODES
    assert set(utils.config.ISIA) == set(model.isia.MODES)
    assert utils.config.LABEL_MAPS == model.bafft.LABEL_MAPS
    assert set(utils.config.PRECISIONS) == set(utils.runtime.DTYPES)


def test_the_released_networks_are_fed_what_the_loader_normalises_to():
    for name in ("resnet101", "vgg16", "oracle_resnet101"):
        expected = dataset.transforms.Normalize(**model.deeplab.input_statistics(name))
        assert expected == dataset.transforms.Normalize()


def test_training_states_are_written_and_recognised_under_one_mark():
    assert model.weight_files.STATE_FORMAT == utils.checkpoint.STATE_FORMAT
