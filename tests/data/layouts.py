"""Tiny downloads of the public sets, in their own layouts, odd lines and files included."""

import csv
import gzip

import cv2
import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACE = "http://www.nih.gov"
(CHEST_COLUMNS,) = csv.reader(
    [
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    ]
)
(LESION_COLUMNS,) = csv.reader(
    [
        "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,"
        "Bounding_boxes,Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,"
        "Possibly_noisy,Slice_range,Spacing_mm_px_,Image_size,DICOM_windows,Patient_gender,"
        "Patient_age,Train_Val_Test"
    ]
)


def picture(seed, shape=(24, 30), dtype=np.uint8, high=256):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1])), path)
    elif array.dtype == np.uint16:
        cv2.imwrite(str(path), array)
    else:
        Image.fromarray(array).save(path)


def square(shape=(24, 30)):
    mask = np.zeros(shape, np.uint8)
    mask[4:9, 5:12] = 255
    return mask


def table(path, header, rows, *, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, lineterminator=end)
        writer.writerows([header, *rows])


def film(name, side):
    """12-bit film values of one JSRT film: `side` x `side`, big-endian."""
    return picture(sum(map(ord, name)), (side, side), np.uint16, 4096)


def jsrt(root, side=2048):
    """Six normal films and three nodules: one plain, one without a place, one without a line."""
    (root / "films").mkdir(parents=True)
    names = [f"JPCNN{n:03d}" for n in range(1, 7)] + [f"JPCLN{n:03d}" for n in range(1, 4)]
    for name in names:
        film(name, side).astype(">u2").tofile(root / "films" / f"{name}.IMG")
    lines = [
        "JPCLN001.IMG\t5\t15\t?\tMale\t40\t21\tmalignant\tl.upper lobe\tlung cancer",
        "JPCLN002.IMG\t3\t10\t66\tFemale\t?\t?\tbenign\tr.lower\thamartoma",
        "JPCLN009.IMG 1 20 50 Male 10 12 benign not there",
    ]
    # Old tables end lines as old Macs did.
    (root / "CLNDAT_EN.txt").write_bytes("\r".join(lines).encode() + b"\r")
    return root


def chestxray14(root):
    """Sixteen PA adults of eight patients, the last two of them in the test list, and odd lines.

    Images are copies of 24 x 30 pixels; boxes are in pixels of the published ones, 1024 x 1024.
    """
    rows = []
    tail = ["2048", "4096", "0.1", "0.2", ""]
    for k in range(16):
        patient, finding = k // 2, "Mass|Nodule" if k % 2 else "No Finding"
        age = "058Y" if k % 3 else "58"
        rows.append(
            [f"{k:08d}_000.png", finding, "0", str(patient), age, "FM"[patient % 2], "PA", *tail]
        )
        # Some of the published files carry an alpha channel.
        alpha = np.full((24, 30, 1), 255, np.uint8)
        image = picture(k)
        image = np.concatenate([image[..., None]] * 3 + [alpha], -1) if k == 4 else image
        put(root / "images" / f"{k:08d}_000.png", image)
    odd = [("child", "012Y", "PA"), ("side", "058Y", "AP"), ("ghost", "414Y", "PA")]
    for name, age, view in odd:
        rows.append([f"{name}.png", "No Finding", "0", "1", age, "F", view, *tail])
        put(root / "images" / f"{name}.png", picture(99))
    rows.append(["lost.png", "No Finding", "0", "1", "058Y", "F", "PA", *tail])
    rows.append(rows[0])
    table(root / "Data_Entry_2017.csv", CHEST_COLUMNS, rows)
    (root / "test_list.txt").write_text("".join(f"{k:08d}_000.png\r\n" for k in (12, 13, 14, 15)))
    boxes = [
        ["00000013_000.png", "Infiltrate", "170.67", "170.7", "238.9", "213.3", "", "", ""],
        ["00000013_000.png", "Mass", "9", "9", "0", "5", "", "", ""],
        ["00000015_000.png", "Mass", "?", "9", "3", "5", "", "", ""],
    ]
    header = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]
    table(root / "BBox_List_2017.csv", header, boxes)
    return root


def mimic_cxr(root):
    """Two normal PA studies each in train, validate and test, and an abnormal one in each."""
    split, views, labels = [], [], []

    def study(patient, number, part, view, finding, again=""):
        name = f"d{patient}-{number}-{again}{view.lower()}"
        split.append([name, str(number), str(patient), part])
        views.append([name, str(patient), str(number), view])
        if not any(row[1] == str(number) for row in labels):
            labels.append([str(patient), str(number), *finding])
        home = root / "files" / f"p{str(patient)[:2]}" / f"p{patient}" / f"s{number}"
        put(home / f"{name}.jpg", picture(number))

    normal, sick, unclear = ("", "1.0", ""), ("1.0", "", ""), ("-1.0", "", "1.0")
    kinds, number = (normal, normal, sick, unclear), 50000000
    for first, part in ((10000001, "train"), (11000001, "validate"), (12000001, "test")):
        for patient, finding in zip(range(first, first + 4), kinds, strict=True):
            number += 1
            study(patient, number, part, "PA", finding)
            study(patient, number, part, "LATERAL", finding)
    study(10000001, 50000001, "train", "PA", normal, again="second-")
    lost = root / "files/p10/p10000009/s59999999"
    study(10000009, 59999999, "train", "PA", normal)
    next(lost.glob("*.jpg")).unlink()
    columns = ("dicom_id", "study_id", "subject_id", "split")
    table(root / "mimic-cxr-2.0.0-split.csv.gz", columns, split)
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    table(root / "mimic-cxr-2.0.0-metadata.csv.gz", columns, views)
    columns = ("subject_id", "study_id", "Edema", "No Finding", "Support Devices")
    table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", columns, labels)
    return root


def deeplesion(root):
    """Four patients (two of them in training) of one series each, and lines that cannot be used."""

    def line(series, number, box, *, kind=5, noisy=0, part=1, spacing="0.5, 0.8, 5"):
        return [f"{series}_{number:03d}.png", "1", "1", "1", str(number), "1, 2, 3, 4, 5, 6, 7, 8",
                box, "12, 8", "0.5, 0.5, 0.5", str(kind), str(noisy), "100, 108", spacing,
                "30, 24", "-175, 275", "F", "62", str(part)]  # fmt: skip

    rows = []
    for patient, part in ((1, 1), (2, 1), (3, 2), (4, 3)):
        series = f"{patient:06d}_01_02"
        rows.append(line(series, 104, "5.5, 4.2, 12, 9", part=part))
        for number in range(97, 112):
            image = picture(patient * 1000 + number, dtype=np.uint16, high=3000)
            put(root / "Images_png" / series / f"{number:03d}.png", image + 31800)
    rows.append(line("000001_01_02", 110, "5, 5, 9, 9"))
    rows.append(line("000004_01_02", 104, "20, 15, 25, 20", kind=-1, part=3))
    rows.append(line("000004_01_02", 106, "1, 1, 5, 5", noisy=1, part=3))
    rows.insert(1, line("000004_01_02", 104, "1, 18, 9, 22", kind=4, noisy=1, part=3))
    rows.append(line("000004_01_02", 107, "5, 5, 5, 9", part=3))  # empty
    rows.append(line("000004_01_02", 107, "5, 5, nan", part=3))
    rows.append(line("000007_01_01", 50, "5, 5, 8, 9", part=3))  # not downloaded
    table(root / "DL_info.csv", LESION_COLUMNS, rows)
    return root


def head_ct(root):
    """Ten haemorrhages and ten normal slices, as numbered in public; one image is missing."""
    for k in (*range(10), *range(100, 119)):
        image = picture(k, (20 + k % 3, 22))
        put(root / "head_ct" / f"{k:03d}.png", np.stack([image] * 3, -1))
    rows = [[str(k), " 1"] for k in range(10)] + [[str(k), " 0"] for k in range(100, 120)]
    table(root / "labels.csv", ["id", " hemorrhage"], rows)
    return root


def mvtec(root):
    for k in range(6):
        put(root / "nut" / "train" / "good" / f"{k:03d}.png", picture(k, (24, 30, 3)))
    put(root / "nut" / "test" / "good" / "000.png", picture(50, (24, 30, 3)))
    put(root / "nut" / "test" / "crack" / "000.png", picture(51, (24, 30, 3)))
    put(root / "nut" / "ground_truth" / "crack" / "000_mask.png", square())
    return root


def busi(root):
    home = root / "Dataset_BUSI_with_GT"
    y, x = np.indices((40, 50))
    for k in range(1, 9):
        # Smooth, and each its own: equal thumbnails would be duplicates.
        image = 120 + 100 * np.sin(x / (1 + k)) * np.cos(y / (9 - k))
        put(home / "normal" / f"normal ({k}).png", image.astype(np.uint8))
        put(home / "normal" / f"normal ({k})_mask.png", square((40, 50)) * 0)
    for kind in ("benign", "malignant"):
        put(home / kind / f"{kind} (1).png", picture(70, (40, 50)))
        put(home / kind / f"{kind} (1)_mask.png", square((40, 50)))
        put(home / kind / f"{kind} (1)_mask_1.png", square((40, 50))[::-1].copy())
    return root


def lgg(root):
    for patient in range(6):
        name = f"TCGA_CS_{patient:04d}_19990101"
        for k in range(1, 8):
            stem = root / "kaggle_3m" / name / f"{name}_{k}"
            put(stem.with_name(f"{stem.name}.tif"), picture(patient * 10 + k, (24, 30, 3)))
            mask = square() if k == 1 else square() * 0
            put(stem.with_name(f"{stem.name}_mask.tif"), mask)
    return root


def mood(root):
    for region, name in (("brain", "brain"), ("abdom", "abdom")):
        for k in range(6):
            volume = picture(k, (20, 24, 22), np.float32, 200) / np.float32(200)
            volume[:, :, :2] = volume[:, :2] = 0
            put(root / region / f"{name}_train" / f"{k:05d}.nii.gz", volume)
        toy = root / region / "toy_label"
        put(root / region / "toy" / "00000.nii.gz", picture(90, (20, 24, 22), np.float32, 200))
        put(
            toy / "pixel" / "00000.nii.gz",
            np.pad(np.ones((4, 4, 4), np.uint8), ((8, 8), (9, 11), (9, 9))),
        )
        (toy / "sample").mkdir()
        (toy / "sample" / "00000.nii.gz.txt").write_text("1\n")
    return root


def lidc_pixels(patient, depth=12, side=24):
    """Stored values of a scan, top slice first in the files but last by position."""
    return picture(patient, (depth, side, side), np.int16, 1400)


def lidc(root, patients=6):
    """One scan each; two readers outline a nodule on slices 4 and 5, a third marks slice 9."""
    for patient in range(1, patients + 1):
        name = f"LIDC-IDRI-{patient:04d}"
        home = root / name / "1.2" / "1.2.3"
        home.mkdir(parents=True)
        series, uids = generate_uid(), []
        for k, pixels in enumerate(lidc_pixels(patient)):
            uids.append(generate_uid())
            write_slice(home / f"{20 - k:06d}.dcm", pixels, series, uids[-1], z=-100 + 2.5 * k)
        ring = [(6, 5), (12, 5), (12, 11), (6, 11)]
        hole = [(8, 7), (10, 7), (10, 9), (8, 9)]
        readers = [
            [nodule(uids, 4, ring, hole), nodule(uids, 5, ring)],
            # This one names slices by position alone.
            [nodule([""] * 12, 4, [(x + 2, y) for x, y in ring], hole), nodule([""] * 12, 5, ring)],
            [nodule(uids, 9, [(3, 3)])],
            [f"<nonNodule><imageZposition>-77.5</imageZposition><imageSOP_UID>{uids[9]}"
             "</imageSOP_UID><locus><xCoord>1</xCoord><yCoord>2</yCoord></locus></nonNodule>"],
        ]  # fmt: skip
        (home / "069.xml").write_text(reading(series, readers))
    radiograph = root / "LIDC-IDRI-0001" / "9.9" / "9.9.9"
    radiograph.mkdir(parents=True)
    write_slice(radiograph / "1.dcm", picture(1, (24, 24), np.int16), generate_uid(), "1.2.3", z=0)
    (radiograph / "070.xml").write_text(f'<IdriReadMessage xmlns="{SPACE}"/>')
    return root


def reading(series, readers, root="LidcReadMessage"):
    sessions = "".join(f"<readingSession>{''.join(reader)}</readingSession>" for reader in readers)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{SPACE}"><ResponseHeader>'
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{sessions}</{root}>"
    )


def nodule(uids, k, *curves):
    """An unblinded nodule on slice k: its outline, and what is cut out of it."""
    rois = ""
    for inclusion, curve in zip(("TRUE", "FALSE"), curves, strict=False):
        points = "".join(
            f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in curve
        )
        rois += (
            f"<roi><imageZposition>{-100 + 2.5 * k}</imageZposition><imageSOP_UID>{uids[k]}"
            f"</imageSOP_UID><inclusion>{inclusion}</inclusion>{points}</roi>"
        )
    return f"<unblindedReadNodule><noduleID>1</noduleID>{rois}</unblindedReadNodule>"


def write_slice(path, pixels, series, uid, *, z):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID, header.SOPInstanceUID, header.SeriesInstanceUID = (
        CTImageStorage,
        uid,
        series,
    )
    header.Modality, header.PatientName = "CT", "Nobody"
    header.ImagePositionPatient = [0, 0, z]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing, header.SliceThickness = [0.7, 0.7], 2.5
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = 1
    header.PixelData = pixels.astype("<i2").tobytes()
    pydicom.dcmwrite(path, header, enforce_file_format=True)
