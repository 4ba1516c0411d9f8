import random

import torch


class ImagePool:
    def __init__(self, pool_size):
        self.pool_size = pool_size
        if pool_size > 0:
            self.num_imgs, self.images = 0, []

    def query(self, images):
        if self.pool_size == 0:
            return images
        return torch.cat([self.one(image.detach()[None]) for image in images])

    def one(self, image):
        if self.num_imgs < self.pool_size:
            self.num_imgs += 1
            self.images.append(image)
            return image
        if random.uniform(0, 1) > 0.5:
            slot = random.randint(0, self.pool_size - 1)
            stored, self.images[slot] = self.images[slot].clone(), image
            return stored
        return image
