"""The settings of metrics: which features and which rules. They are part of the protocol of each number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastcyclegan.errors import UserError
from fastcyclegan.settings.checks import check_maximum, check_minimum, check_types

MetricName = Literal["fid", "kid", "l1", "psnr", "ssim", "lpips"]
LpipsNet = Literal["alex", "vgg16"]
ResizeRule = Literal["clean", "legacy"]
NAMED_FEATURES = ("inception", "vgg16")
"""The feature networks that have a name; any other is a file."""
LARGEST_SIDE = 65_536


@dataclass(frozen=True)
class MetricConfig:
    """What FID, KID and LPIPS are computed with. Raises UserError for a value that cannot be right."""

    #: Network whose features FID and KID compare. inception: that of most published numbers, which is
    #: downloaded once. vgg16: the means of VGG16's relu5_3. FILE: a TorchScript module that maps float RGB
    #: images [N, 3, H, W] in 0..255 to features [N, D]. Its code is run, so only use files that you trust.
    features: str = "inception"
    #: Side in pixels to which images are resized for that network; none leaves them. Default: 299 for
    #: inception, 224 for vgg16, none for a file.
    features_size: int | Literal["none"] | None = None
    #: File with the weights of vgg16, as torchvision names them. Default: the published file, which is
    #: downloaded once.
    feature_weights: Path | None = None
    #: How images are resized for that network. clean: by Pillow, bicubic and antialiased, as clean-fid does.
    #: legacy: bilinear without antialiasing, as older numbers were computed.
    resize: ResizeRule = "clean"
    #: Network of LPIPS.
    lpips_net: LpipsNet = "alex"
    #: File with the weights of that network, as torchvision names them. Default: the published file, which is
    #: downloaded once.
    lpips_weights: Path | None = None
    #: Number of random subsets for KID.
    kid_subsets: int = 100
    #: Images in each of these subsets; half of the images if there are fewer than twice as many.
    kid_subset_size: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        check_minimum(self, 1, "kid_subsets")
        check_minimum(self, 2, "kid_subset_size")
        check_maximum(self, 1_000_000, "kid_subsets", "kid_subset_size")
        if isinstance(self.features_size, int):
            check_minimum(self, 8, "features_size")
            check_maximum(self, LARGEST_SIDE, "features_size")
        if not self.features:
            raise UserError(f"features must be {', '.join(NAMED_FEATURES)} or a file, got ''")
        if self.feature_weights is not None and self.features != "vgg16":
            raise UserError(f"feature_weights are those of vgg16, but features is {self.features}")

    @property
    def side(self) -> int | None:
        """The side in pixels to which images are resized for the feature network, or None to leave them."""
        if self.features_size is None:
            return {"inception": 299, "vgg16": 224}.get(self.features)
        return None if self.features_size == "none" else self.features_size
