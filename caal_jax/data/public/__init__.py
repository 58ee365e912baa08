"""The data sets that this field publishes on: what each is, and the function that reads it."""

import dataclasses
from collections.abc import Callable

from caal_jax.data import busi, lgg, mood
from caal_jax.data.public import (
    chestxray14,
    deeplesion,
    head_ct,
    jsrt,
    lidc,
    mimic_cxr,
    mvtec,
)
from caal_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A published data set.

    read: `read(root, **options) -> DataSet`, from the set's public layout. dtype: of its images.
    variant: the option of `read` that picks a part of the set, "" if there is none, and its
    default. own_validation: the publishers say which patients validate; otherwise `read` takes
    `validation_fraction` and `seed`.
    """

    name: str
    read: Callable
    dtype: str
    description: str
    homepage: str
    licence: str
    citation: str
    variant: str = ""
    default: str = ""
    own_validation: bool = False

    def dataset(self, root, *, variant="", validation_fraction, seed):
        """The `DataSet` below `root`, in the public layout. Raises `InputError`."""
        options = {self.variant: variant or self.default} if self.variant else {}
        if not self.own_validation:
            options |= {"validation_fraction": validation_fraction, "seed": seed}
        try:
            return self.read(root, **options)
        except OSError as error:
            raise InputError(
                error.filename or root,
                found=f"what cannot be opened ({error.strerror})",
                expected="readable files and folders",
                remedy="Change the permissions, or copy it elsewhere.",
            ) from error


_SETS = (
    PublicSet(
        "mood",
        mood.mood,
        "float32",
        "Medical Out-of-Distribution challenge: healthy brain MRI or abdominal CT volumes.",
        "https://www.synapse.org/mood",
        "Terms of the challenge; access by a Synapse account.",
        "Zimmerer et al. MOOD 2020: A public benchmark for out-of-distribution detection and "
        "localization on medical images. IEEE TMI 41, 2022.",
        variant="region",
        default="brain",
    ),
    PublicSet(
        "jsrt",
        jsrt.jsrt,
        "uint16",
        "Chest films with and without a lung nodule, 12 bit.",
        "http://db.jsrt.or.jp/eng.php",
        "Free after registration; cite the paper.",
        "Shiraishi et al. Development of a digital image database for chest radiographs with and "
        "without a lung nodule. AJR 174, 2000.",
    ),
    PublicSet(
        "lidc",
        lidc.lidc,
        "int16",
        "Chest CT scans with lung nodules outlined by up to four radiologists.",
        "https://www.cancerimagingarchive.net/collection/lidc-idri/",
        "CC BY 3.0",
        "Armato et al. The Lung Image Database Consortium (LIDC) and Image Database Resource "
        "Initiative (IDRI). Medical Physics 38, 2011.",
    ),
    PublicSet(
        "deeplesion",
        deeplesion.deeplesion,
        "int16",
        "CT slices of the whole body with boxed lesions, and the slices around them.",
        "https://nihcc.app.box.com/v/DeepLesion",
        "Terms in the README of the download; free for research.",
        "Yan et al. DeepLesion: automated mining of large-scale lesion annotations and universal "
        "lesion detection with deep learning. J Med Imaging 5, 2018.",
        own_validation=True,
    ),
    PublicSet(
        "mimic_cxr",
        mimic_cxr.mimic_cxr,
        "uint8",
        "Chest radiographs with labels taken from their reports.",
        "https://physionet.org/content/mimic-cxr-jpg/",
        "PhysioNet credentialed access with a data use agreement; not to be passed on.",
        "Johnson et al. MIMIC-CXR-JPG, a large publicly available database of labeled chest "
        "radiographs. arXiv 1901.07042, 2019.",
        own_validation=True,
    ),
    PublicSet(
        "chestxray14",
        chestxray14.chestxray14,
        "uint8",
        "Frontal chest radiographs of the NIH Clinical Center, some findings boxed.",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "No restriction on use; the NIH Clinical Center asks to be named.",
        "Wang et al. ChestX-ray8: hospital-scale chest X-ray database and benchmarks. CVPR 2017.",
        variant="sex",
        default="all",
    ),
    PublicSet(
        "mvtec",
        mvtec.mvtec,
        "uint8",
        "MVTec AD: photographs of industrial products with and without defects.",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "CC BY-NC-SA 4.0",
        "Bergmann et al. The MVTec anomaly detection dataset. IJCV 129, 2021.",
        variant="category",
    ),
    PublicSet(
        "busi",
        busi.busi,
        "uint8",
        "Breast ultrasound images: normal, benign and malignant with outlines.",
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        "Article CC BY 4.0; licences of mirrors differ.",
        "Al-Dhabyani et al. Dataset of breast ultrasound images. Data in Brief 28, 2020.",
    ),
    PublicSet(
        "lgg",
        lgg.lgg,
        "uint8",
        "Brain MRI slices of lower-grade glioma (TCGA-LGG, kaggle_3m) with outlines.",
        "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
        "Images CC BY 3.0 (TCIA), masks CC BY-NC-SA 4.0.",
        "Buda, Saha, Mazurowski. Association of genomic subtypes of lower-grade gliomas with shape "
        "features automatically extracted by a deep learning algorithm. Comput Biol Med 109, 2019.",
        variant="channel",
        default="flair",
    ),
    PublicSet(
        "head_ct",
        head_ct.head_ct,
        "uint8",
        "Head CT slices with and without a haemorrhage.",
        "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        "CC0 as published on Kaggle.",
        "Kitamura. Head CT - hemorrhage. Kaggle.",
    ),
)
SETS = {one.name: one for one in _SETS}


def find_set(name):
    """The `PublicSet` of a name. Raises `InputError` for one that is not known."""
    if name not in SETS:
        raise InputError(
            "dataset",
            found=repr(name),
            expected=", ".join(SETS),
            remedy="Correct the name. Your own images (folder) and hippocampus are trained on as "
            "they are, without preparation: docs/data.md.",
        )
    return SETS[name]
