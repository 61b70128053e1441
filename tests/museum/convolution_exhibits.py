"""Convolutions, residual blocks, networks of images."""

from __future__ import annotations

from exhibit import Exhibit

from layers import convolution, inception, residual, unet
from layers.convolution import BlurPool, ConvNormAct, SqueezeExcite
from layers.residual import InvertedResidual, PaddedShortcut, Residual
from zoo import mobilenet

OF_RESIDUALS, OF_CONVOLUTIONS = "layers/test_residual.py:", "layers/test_convolution.py:"
OF_UNETS = "layers/test_unet.py:"

EXHIBITS = (
    Exhibit(
        "stride in the first convolution",
        "The stride stands in the 1x1 convolution of a bottleneck, as in the paper, not in the 3x3; no shape tells.",
        ("pytorch/vision#191", "pytorch/vision#1266"),
        residual.bottleneck,
        "1, norm=norm),\n        *downsampling(hidden_dim, hidden_dim, stride, blur,",
        "1, stride=stride, norm=norm),\n        *downsampling(hidden_dim, hidden_dim, 1, blur,",
        OF_RESIDUALS + "deep", "forward[torchvision]",
    ),
    Exhibit(
        "stride in the second convolution",
        "The same in a basic block.",
        ("pytorch/vision#191",),
        residual.basic_block,
        "stride, blur, norm=norm),\n        ConvNormAct(out_channels, out_channels, 3,",
        "1, blur, norm=norm),\n        ConvNormAct(out_channels, out_channels, 3, stride=stride,",
        OF_RESIDUALS + "basic", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "no projection at stride one",
        "The first block of a stage widens without a stride, and gets the identity for a shortcut.",
        ("pytorch/vision#191",),
        residual.projected, "if stride == 1 and in_channels == out_channels", "if stride == 1",
        OF_RESIDUALS + "deep", "weights[torchvision]", cf=True,
    ),
    Exhibit(
        "activation before the sum",
        "The body is activated, then the shortcut added.",
        ("pytorch/vision#191",),
        Residual.forward, "self.activation(self.body(images) + self.shortcut(images))",
        "self.activation(self.body(images)) + self.shortcut(images)",
        OF_RESIDUALS + "basic", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "activation before the sum too",
        "The last convolution of the body has a ReLU.",
        ("pytorch/vision#191",),
        residual.basic_block, "ConvNormAct(out_channels, out_channels, 3, norm=norm, activation=None)",
        "ConvNormAct(out_channels, out_channels, 3, norm=norm)",
        OF_RESIDUALS + "basic", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "channels padded in front",
        "The zeros of a shortcut without parameters stand before the channels, not after them.",
        ("pytorch/vision#191",),
        PaddedShortcut.forward, "(0, 0, 0, 0, 0, self.missing)", "(0, 0, 0, 0, self.missing, 0)",
        OF_RESIDUALS + "padded_shortcut", "forward[by hand]", cf=True,
    ),
    Exhibit(
        "a shortcut of maxima",
        "A strided shortcut takes the largest of each square of pixels, where the paper leaves the others out.",
        ("pytorch/vision#191",),
        PaddedShortcut.forward, "images[..., :: self.stride, :: self.stride]",
        "F.max_pool2d(images, self.stride, self.stride, ceil_mode=True)",
        OF_RESIDUALS + "padded_shortcut", "forward[by hand]", cf=True,
    ),
    Exhibit(
        "gate without its ReLU",
        "Between the two convolutions of squeeze and excitation nothing is activated.",
        ("lukemelas/EfficientNet-PyTorch#229",),
        SqueezeExcite.forward, "self.down(mean).relu()", "self.down(mean)",
        OF_RESIDUALS + "squeeze_excite", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "borders repeated, not mirrored",
        "What blurs before it leaves out pixels pads another way.",
        ("lukemelas/EfficientNet-PyTorch#235",),
        BlurPool.forward, 'mode="reflect"', 'mode="replicate"',
        OF_RESIDUALS + "blur_pool", "forward[timm]", cf=True,
    ),
    Exhibit(
        "shortcut of an inverted residual",
        "The input is added only where the block does not widen.",
        ("pytorch/vision#191",),
        InvertedResidual.__init__, "stride == 1 and in_channels == out_channels",
        "stride == 1 and in_channels == out_channels == hidden_dim",
        OF_RESIDUALS + "inverted_v2", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "bottleneck with an activation",
        "The last convolution of an inverted residual, which should be linear, is activated.",
        ("pytorch/vision#973",),
        InvertedResidual.__init__, "ConvNormAct(hidden_dim, out_channels, 1, norm=norm, activation=None)",
        "ConvNormAct(hidden_dim, out_channels, 1, norm=norm)",
        OF_RESIDUALS + "inverted_v2", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "hard sigmoid of Keras",
        "0.2 x + 0.5, cut off at 0 and 1, in place of (x + 3) / 6.",
        ("lukemelas/EfficientNet-PyTorch#229",),
        convolution.hard_sigmoid, "F.relu6(x + 3) / 6", "(0.2 * x + 0.5).clamp(0, 1)",
        OF_CONVOLUTIONS + "test_hard_sigmoid_is_torchs", cf=True,
    ),
    Exhibit(
        "activation before the norm",
        "Convolution, activation, norm.",
        ("pytorch/vision#191",),
        ConvNormAct.forward, "x = self.norm(self.conv(images))", "x = self.norm(self.activation(self.conv(images)))",
        OF_CONVOLUTIONS + "conv_norm_act", "forward[torch]", cf=True,
    ),
    Exhibit(
        "activation within the caller's images",
        "Where nothing comes before it, the activation is written into the input.",
        ("huggingface/transformers#47741",),
        convolution.activated, "if not kinds or not kinds", "if not kinds",
        OF_CONVOLUTIONS + "test_the_callers_images_are_never_written_over", cf=True,
    ),
    Exhibit(
        "padding of rows and columns exchanged",
        "A kernel that is no square is padded for the other direction.",
        ("lukemelas/EfficientNet-PyTorch#235",),
        ConvNormAct.__init__, "(kernel_size[0] // 2, kernel_size[1] // 2)", "(kernel_size[1] // 2, kernel_size[0] // 2)",
        OF_CONVOLUTIONS + "test_rectangular_kernels_keep_the_size", cf=True,
    ),
    Exhibit(
        "averages without the border",
        "Zeros of the padding are not counted in an average, as TensorFlow does it.",
        ("lukemelas/EfficientNet-PyTorch#235",),
        inception.pooled, "nn.AvgPool2d(3, stride=1, padding=1)", "nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)",
        "layers/test_inception.py:block_a", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "3x3 where the paper has 5x5",
        "The branch of the large convolution has a small one.",
        ("pytorch/vision#906", "pytorch/vision#1932", "tensorflow/tensorflow#7130"),
        inception.inception_v1, "conv(five[0], five[1], kernel_size)", "conv(five[0], five[1], 3)",
        "layers/test_inception.py:v1", "weights[torchvision]",
    ),
    Exhibit(
        "averages for maxima",
        "A branch that halves the image pools by averages.",
        ("pytorch/vision#906",),
        inception.inception_b, "nn.MaxPool2d(3, stride=2)", "nn.AvgPool2d(3, stride=2)",
        "layers/test_inception.py:block_b", "forward[torchvision]", cf=True,
    ),
    Exhibit(
        "momentum of TensorFlow",
        "0.99 means in TensorFlow what 0.01 means in torch.",
        ("pytorch/vision#8250", "Cadene/pretrained-models.pytorch#44"),
        mobilenet.mobilenet_v3, "eps=1e-3, momentum=0.01", "eps=1e-3, momentum=0.99",
        "zoo/test_mobilenet.py:v3", "forward[torchvision]",
    ),
    Exhibit(
        "eps of torch in a norm of TensorFlow",
        "Batch norms add 1e-5 to the variance where their weights were trained with 1e-3.",
        ("lukemelas/EfficientNet-PyTorch#229",),
        mobilenet.mobilenet_v3, "eps=1e-3, momentum=0.01", "eps=1e-5, momentum=0.01",
        "zoo/test_mobilenet.py:v3", "forward[torchvision]",
    ),
    Exhibit(
        "channels not rounded",
        "A width multiplier's channels are cut to whole numbers, not rounded to multiples of eight.",
        ("pytorch/vision#973", "pytorch/vision#1005"),
        mobilenet.rounded, "return nearest + divisor if nearest < 0.9 * channels else nearest", "return max(1, int(channels))",
        "zoo/test_mobilenet.py:v2", "weights[torchvision]",
    ),
    Exhibit(
        "padding at the wrong end",
        "At stride two the zeros come before the first row and column, not after the last.",
        ("lukemelas/EfficientNet-PyTorch#235",),
        unet.Downsample.forward, "(0, 1, 0, 1)", "(1, 0, 1, 0)",
        OF_UNETS + "half", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "smooth in place of repeated pixels",
        "Images are enlarged by interpolation.",
        ("lukemelas/EfficientNet-PyTorch#235",),
        unet.Upsample.forward, 'mode="nearest"', 'mode="bilinear"',
        OF_UNETS + "twice", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "time without its activation",
        "The time is added to a U-Net's block as a linear layer gives it.",
        ("lucidrains/audiolm-pytorch#265",),
        unet.TimeResidual.forward, "self.time(F.silu(time))", "self.time(time)",
        OF_UNETS + "residual", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "eps of a group norm left at its default",
        "The norm is built without the eps that it was asked for.",
        ("keras-team/keras-hub#642",),
        unet.group_norm, "nn.GroupNorm(groups, channels, eps)", "nn.GroupNorm(groups, channels)",
        OF_UNETS + "residual", "forward[diffusers]", cf=True,
    ),
)  # fmt: skip
