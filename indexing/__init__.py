"""From any source of scans and labels to the layout that train.py and test.py read; `scripts/make_index.py` is its door.

    cases.py      what a source is cut into: Case -> Picture -> Object
    sources       pictures.py (images with masks or label maps), volumes.py with dicom.py, nnunet.py, coco.py
    preparation   intensity.py (to 8 bits), objects.py (components, small pieces), classes.py (names of values)
    convert.py    all cases through several processes, resumable; splits.py, writer.py (files on disk)
    sa_med2d.py   SA-Med2D-20M, which is in the layout already: its index alone
"""
